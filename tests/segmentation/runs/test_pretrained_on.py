"""Which patients a pre-training saw: by data set, by copies of files, through a second stage."""

import shutil
from pathlib import Path

import pytest
import torch

from spcl_fast.segmentation.data.grid import Grid
from spcl_fast.segmentation.data.scan import Scan
from spcl_fast.segmentation.runs.dataset import DataConfig
from spcl_fast.segmentation.runs.pretrained_on import pretrained_on, read_pretrained_on
from spcl_fast.segmentation.runs.run import save_weights


@pytest.fixture
def scans(tmp_path):
    """Three patients, whose images differ in size."""
    (tmp_path / "data").mkdir()
    found = []
    for number in range(3):
        path = tmp_path / "data" / f"p{number}.nii"
        path.write_bytes(bytes(10 + number))
        found.append(Scan(path.stem, path.stem, None, path, None))
    return found


def saved(folder, seen):
    folder.mkdir()
    save_weights(folder / "encoder.safetensors", {"w": torch.zeros(1)}, seen.metadata())
    return folder


def test_patients_of_the_same_data_set(scans, tmp_path):
    data = DataConfig(root=tmp_path / "data", grid=Grid(32, 2.5))
    known = read_pretrained_on(saved(tmp_path / "run", pretrained_on(data, scans[:2], None)))
    assert known.grid == Grid(32, 2.5)
    assert known.seen_of(data, scans) == ["p0", "p1"]
    other = Scan("p0_late", "p0", None, scans[2].image, None)  # another scan of that patient
    assert known.seen_of(data, [other]) == ["p0"]
    assert known.seen_of(data, scans[2:]) == []


def test_a_copy_of_the_data_set(scans, tmp_path):
    known = pretrained_on(DataConfig(root=tmp_path / "data"), scans[:2], None)
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    copies = [Scan(s.name, s.name, None, tmp_path / "copy" / s.image.name, None) for s in scans]
    data = DataConfig(root=tmp_path / "copy")
    assert known.seen_of(data, copies) == ["p0", "p1"]
    copies[0].image.write_bytes(bytes(99))  # patients of one name in two data sets
    assert known.seen_of(data, copies) == ["p1"]


def test_what_the_first_stage_saw_counts_after_the_second(scans, tmp_path):
    data = DataConfig(root=tmp_path / "data")
    first = saved(tmp_path / "first", pretrained_on(data, scans[:1], None))
    second = saved(tmp_path / "second", pretrained_on(data, scans[1:2], first))
    path = second / "encoder.safetensors"
    assert read_pretrained_on(path).seen_of(data, scans) == ["p0", "p1"]


def test_an_encoder_that_does_not_say(tmp_path):
    save_weights(tmp_path / "encoder.safetensors", {"w": torch.zeros(1)}, {"part": "encoder"})
    assert read_pretrained_on(Path(tmp_path)) is None
