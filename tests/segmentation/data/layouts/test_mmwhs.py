"""MM-WHS's layout: modalities, the two sets of classes, stray label values."""

import nibabel
import numpy as np
import pytest

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.find import find_data
from spcl_fast.segmentation.data.layouts.mmwhs import (
    CLASS_NAMES,
    FOUR_CLASS_NAMES,
    LAYOUT,
)
from spcl_fast.segmentation.data.volume import read_scan

# one voxel column of each published value, and a stray
VALUES = np.array([0, 500, 600, 420, 550, 205, 820, 850, 421], np.int16)
ORGANS = ["background", "LV", "RV", "LA", "RA", "MYO", "AA", "PA", "background"]


def add_volume(root, modality, number):
    folder = root / f"{modality}_train"
    folder.mkdir(parents=True, exist_ok=True)
    mask = np.broadcast_to(VALUES[:, None, None], (9, 4, 3)).copy()
    for part, array in (("image", np.ones_like(mask)), ("label", mask)):
        path = folder / f"{modality}_train_{number}_{part}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(array, np.diag([0.5, 0.5, 0.6, 1])), path)
    return folder


def test_modalities(tmp_path):
    add_volume(tmp_path, "mr", 1002)
    ct = add_volume(tmp_path, "ct", 1001)
    (tmp_path / "ct_test").mkdir()
    (tmp_path / "ct_test" / "ct_test_2001_image.nii.gz").touch()
    assert LAYOUT.recognises(tmp_path)
    scans = find_data(tmp_path, layout="mmwhs").scans
    assert [(s.name, s.patient, s.phase, dict(s.meta)) for s in scans] == [
        ("ct_train_1001", "ct_train_1001", None, {"modality": "ct"}),
        ("mr_train_1002", "mr_train_1002", None, {"modality": "mr"}),
    ]
    assert LAYOUT.recognises(ct)
    assert [s.name for s in find_data(ct, layout="mmwhs").scans] == ["ct_train_1001"]


# all structures, and the four of the literature
@pytest.mark.parametrize(
    ("layout", "names"), [("mmwhs", CLASS_NAMES), ("mmwhs4", FOUR_CLASS_NAMES)]
)
def test_classes(tmp_path, layout, names):
    add_volume(tmp_path, "ct", 1001)
    found = find_data(tmp_path, layout=layout)
    (scan,) = found.scans
    assert scan.class_names == found.class_names == names
    volume = read_scan(scan)
    expected = [names.index(organ) if organ in names else 0 for organ in ORGANS]
    np.testing.assert_array_equal(volume.mask[0, 0], expected)
    assert volume.mask.shape == (3, 4, 9)  # the third axis of the file is the stack
    assert volume.spacing_mm == pytest.approx((0.6, 0.5, 0.5))


def test_number_of_classes():
    assert len(CLASS_NAMES) == 8
    assert len(FOUR_CLASS_NAMES) == 5
    assert set(FOUR_CLASS_NAMES) < set(CLASS_NAMES)


def test_incomplete_volume(tmp_path):
    folder = add_volume(tmp_path, "ct", 1001)
    add_volume(tmp_path, "ct", 1002)
    (folder / "ct_train_1001_image.nii.gz").unlink()
    with pytest.raises(DataError, match=r"ct_train_1001_image\.nii\.gz must exist"):
        find_data(tmp_path, layout="mmwhs")
    bad, good = LAYOUT.find(tmp_path)
    assert isinstance(bad, DataError)
    assert good[0].name == "ct_train_1002"
