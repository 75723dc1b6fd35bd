"""Files are whole or absent, whoever writes them."""

import os

import numpy as np
import pytest
import torch

from benchmarks._provenance import write_result
from spcl_fast.atomic_file import atomic_file, remove_partials
from spcl_fast.segmentation.data import slices
from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.volume import write_labels
from spcl_fast.segmentation.phantom import writer
from spcl_fast.segmentation.runs.run import save_weights


def write_text(path):
    with atomic_file(path) as partial:
        partial.write_text("whole")


# Writers of each kind of file: they must neither tear a file nor hide it from other users.
WRITERS = {
    "a.txt": write_text,
    "a.json": lambda path: write_result(path, {"rows": []}, append=False),
    "a.safetensors": lambda path: save_weights(path, {"w": torch.ones(2)}, {}),
    "a.nii.gz": lambda path: write_labels(path, np.zeros((2, 3, 4), np.uint8), np.eye(4)),
    "a.npz": lambda path: slices._write_entry(
        path, np.zeros((1, 2, 2), np.float32), np.zeros((1, 2, 2), np.uint8)
    ),
    "metadata.csv": lambda path: writer._write_text(path, "patient,vendor\n"),
}
EVERY_WRITER = pytest.mark.parametrize("name", WRITERS)


@EVERY_WRITER
@pytest.mark.parametrize("error", [OSError(28, "disk is full"), KeyboardInterrupt("pressed")])
def test_interrupted_writer_leaves_the_previous_file(name, error, tmp_path, monkeypatch):
    path = tmp_path / name
    path.write_text("before")

    def interrupt(*_):
        raise error

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises((OSError, DataError, KeyboardInterrupt), match=r"disk is full|pressed"):
        WRITERS[name](path)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("error", [OSError(28, "disk is full"), KeyboardInterrupt()])
def test_interrupted_half_way_leaves_the_previous_file(error, tmp_path):
    path = tmp_path / "file"
    path.write_text("before")

    def write_half():
        with atomic_file(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(type(error)) as raised:
        write_half()
    if isinstance(error, OSError):
        assert raised.value.errno == 28
        assert raised.value.strerror == f"{path} could not be written: disk is full"
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]


@EVERY_WRITER
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])  # alone, with a group, private
def test_missing_folder_is_made_and_the_umask_decides_who_reads(name, umask, tmp_path):
    path = tmp_path / "new" / "folder" / name
    before = os.umask(umask)
    try:
        WRITERS[name](path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert path.parent.stat().st_mode & 0o777 == 0o777 & ~umask
    assert not list(path.parent.glob(".*"))


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"a\.txt could not be written: (Not a dir|File exists)"):
        write_text(tmp_path / "file" / "a.txt")


def test_what_a_killed_process_leaves_can_be_removed(tmp_path):
    (tmp_path / "kept").write_text("")
    with atomic_file(tmp_path / "a.nii.gz") as partial:
        partial.write_text("half")
        assert partial.name.endswith(".nii.gz")  # writers look at the suffix
        remove_partials(tmp_path)
        assert not partial.exists()
        partial.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == ["a.nii.gz", "kept"]
