"""PROMISE12's layout: where its cases may lie, what is left out, and a real case."""

import numpy as np
import pytest

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.find import find_data
from spcl_fast.segmentation.data.layouts.promise12 import CLASS_NAMES, LAYOUT
from spcl_fast.segmentation.data.metaimage import write_metaimage
from spcl_fast.segmentation.data.volume import read_scan


def add_case(folder, name, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    image = rng.integers(-9, 900, (4, 6, 5)).astype(np.int16)
    mask = rng.integers(0, 2, (4, 6, 5)).astype(np.int8)
    write_metaimage(folder / f"{name}.mhd", image, (3.6, 0.6, 0.6))
    write_metaimage(folder / f"{name}_segmentation.mhd", mask, (3.6, 0.6, 0.6))
    return image, mask


# how the archives unpack, and all cases in one folder
@pytest.mark.parametrize(
    "subs",
    [
        (".", "."),
        ("training_data", "training_data"),
        ("TrainingData_Part1", "TrainingData_Part3"),
    ],
)
def test_layouts(tmp_path, subs):
    add_case(tmp_path / subs[1], "Case37")
    image, mask = add_case(tmp_path / subs[0], "Case02", seed=1)
    (tmp_path / "test_data").mkdir()
    write_metaimage(tmp_path / "test_data" / "Case00.mhd", image, (1, 1, 1))
    assert LAYOUT.recognises(tmp_path)
    scans = find_data(tmp_path, layout="promise12").scans
    assert [(s.name, s.patient, s.phase) for s in scans] == [
        ("Case02", "Case02", None),
        ("Case37", "Case37", None),
    ]
    assert scans[0].class_names == CLASS_NAMES
    volume = read_scan(scans[0])
    np.testing.assert_array_equal(volume.image, image)
    np.testing.assert_array_equal(volume.mask, mask)
    assert volume.spacing_mm == (3.6, 0.6, 0.6)


def test_incomplete_case(tmp_path):
    add_case(tmp_path, "Case00")
    add_case(tmp_path, "Case01")
    (tmp_path / "Case00.mhd").unlink()
    with pytest.raises(DataError, match=r"Case00\.mhd must exist"):
        find_data(tmp_path, layout="promise12")
    bad, good = LAYOUT.find(tmp_path)
    assert isinstance(bad, DataError)
    assert good[0].name == "Case01"


def test_missing_voxels_are_told_when_read(tmp_path):
    add_case(tmp_path, "Case00")
    (tmp_path / "Case00.raw").unlink()
    with pytest.raises(DataError, match=r"Case00.raw must hold the voxels of Case00.mhd"):
        read_scan(find_data(tmp_path, layout="promise12").scans[0])


def test_unlabelled_cases_alone_are_not_recognised(tmp_path):
    write_metaimage(tmp_path / "Case00.mhd", np.zeros((2, 3, 4), np.int16), (1, 1, 1))
    assert not LAYOUT.recognises(tmp_path)


def test_real_case(real_data):
    (scan,) = find_data(real_data / "promise12_layout_sample", layout="promise12").scans
    volume = read_scan(scan)
    assert volume.image.shape == (19, 384, 384)
    assert 0.01 < (volume.mask == 1).mean() < 0.1
    # tissue inside the organ, not air: image and mask are read alike
    assert volume.image[volume.mask == 1].mean() > np.median(volume.image)
