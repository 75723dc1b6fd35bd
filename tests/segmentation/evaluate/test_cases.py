"""Which volumes prediction takes from files: channels, frames, names."""

import nibabel
import numpy as np
import pytest

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.evaluate.cases import InputVolume, VolumeChoice, cases_of

FILES = VolumeChoice(channel=1, in_files=True)
AXIS = VolumeChoice(channel=1, on_axis=True)


def save(path, *more):
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5, *more), np.float32), np.eye(4)), path)
    return path


def cases(folder, choice):
    found = cases_of(folder, folder / "out", choice)
    return {name: case.error or (case.path.name, case.frame) for name, case in found.items()}


def test_files_of_channels_are_one_case(tmp_path):
    for name in ("a_0000", "a_0001", "b_0000", "b_0001", "plain"):
        save(tmp_path / f"{name}.nii.gz")
    assert cases(tmp_path, FILES) == {
        "a": ("a_0001.nii.gz", None),
        "b": ("b_0001.nii.gz", None),
        "plain": ("plain.nii.gz", None),
    }


def test_a_case_without_its_channel_is_named(tmp_path):
    save(tmp_path / "a_0001.nii.gz")
    other = save(tmp_path / "b_0000.nii.gz")
    found = cases(tmp_path, FILES)
    assert found["a"] == ("a_0001.nii.gz", None)
    wanted = "must hold channel 1 of b, a file b_0001, got b_0000.nii.gz."
    assert found["b"] == f"{tmp_path} {wanted}"
    (case,) = cases_of(other, tmp_path / "out", FILES).values()
    assert case.error.endswith(wanted)


def test_names_that_may_be_channels_are_asked_for(tmp_path):
    for number in range(3):
        save(tmp_path / f"scan_{number:04d}.nii.gz")
    with pytest.raises(DataError, match=r"--channel 0 .*, --channel none if each is a case"):
        cases(tmp_path, VolumeChoice())
    assert list(cases(tmp_path, VolumeChoice(channel=None, is_asked=True))) == [
        "scan_0000",
        "scan_0001",
        "scan_0002",
    ]
    years = save(tmp_path / "years" / "scan_2019.nii.gz").parent
    save(years / "scan_2020.nii.gz")
    assert list(cases(years, VolumeChoice())) == ["scan_2019", "scan_2020"]


@pytest.mark.parametrize("names", [("a_0001.nii", "a_0001.nii.gz"), ("a_0001.nii", "a.nii.gz")])
def test_two_files_of_one_case(tmp_path, names):
    for name in names:
        save(tmp_path / name)
    with pytest.raises(DataError, match=r"must have different names, got .* for a_pred\.nii\.gz"):
        cases(tmp_path, FILES)


def test_channels_along_the_fourth_axis(tmp_path):
    save(tmp_path / "both.nii.gz", 2)
    save(tmp_path / "first.nii.gz")
    assert cases(tmp_path, AXIS) == {"both": ("both.nii.gz", 1), "first": ("first.nii.gz", 1)}
    first = VolumeChoice(channel=0, on_axis=True)
    assert cases(tmp_path, first) == {"both": ("both.nii.gz", 0), "first": ("first.nii.gz", None)}


def test_frames(tmp_path):
    save(tmp_path / "cine.nii.gz", 3)
    save(tmp_path / "one.nii.gz", 1)
    save(tmp_path / "volume.nii.gz")
    still = {"one": ("one.nii.gz", None), "volume": ("volume.nii.gz", None)}
    every = {f"cine_frame{frame:02d}": ("cine.nii.gz", frame) for frame in range(3)}
    assert cases(tmp_path, VolumeChoice(frame="all")) == {**every, **still}
    assert cases(tmp_path, VolumeChoice(frame=2)) == {"cine": ("cine.nii.gz", 2), **still}
    refused = cases(tmp_path, VolumeChoice())
    assert "must hold a 3-D volume, got 3 volumes: choose with --frame" in refused.pop("cine")
    assert refused == still


def test_a_frame_takes_no_name_of_another_case(tmp_path):
    save(tmp_path / "a.nii.gz", 2)
    save(tmp_path / "a_frame01.nii.gz")
    with pytest.raises(
        DataError, match=r"got a\.nii\.gz and a_frame01\.nii\.gz for a_frame01_pred"
    ):
        cases(tmp_path, VolumeChoice(frame="all"))


def test_suffixes_in_capitals(tmp_path):
    path = save(tmp_path / "a.nii.gz").rename(tmp_path / "B.NII.GZ")
    assert cases_of(tmp_path, tmp_path / "out", VolumeChoice()) == {"B": InputVolume(path)}
