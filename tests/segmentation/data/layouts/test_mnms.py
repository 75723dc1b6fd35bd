"""M&Ms' layout: frames and meta-labels from its CSV file, and labels in the order of ACDC."""

import nibabel
import numpy as np
import pytest

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.find import find_data
from spcl_fast.segmentation.data.layouts.mnms import LAYOUT
from spcl_fast.segmentation.data.volume import read_scan

HEADER = ",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology\n"
ROWS = {"A0S9V9": "0,A0S9V9,Siemens,A,1,2,0,48,HCM\n", "B1": "1,B1,Philips,B,3,1,2,,\n"}
NAME = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"


@pytest.fixture
def root(tmp_path):
    (tmp_path / NAME).write_text(HEADER + "".join(ROWS.values()))
    for patient in ROWS:
        folder = tmp_path / "Training" / "Labeled" / patient
        folder.mkdir(parents=True)
        images = np.stack([np.full((6, 5, 4), 10 * frame, np.int16) for frame in range(3)], axis=3)
        masks = np.zeros((6, 5, 4, 3), np.uint8)
        masks[:3, 0], masks[:3, 1], masks[:3, 2] = 1, 2, 3  # LV, MYO, RV in the files
        for name, array in ((f"{patient}_sa", images), (f"{patient}_sa_gt", masks)):
            nifti = nibabel.Nifti1Image(array, np.diag([1.2, 1.2, 9.0, 1]))
            nibabel.save(nifti, folder / f"{name}.nii.gz")
        (folder / f"._{patient}_sa.nii.gz").touch()
    unlabelled = tmp_path / "Training" / "Unlabeled" / "C2"
    unlabelled.mkdir(parents=True)
    (unlabelled / "C2_sa.nii.gz").touch()
    return tmp_path


def test_scans(root):
    assert LAYOUT.recognises(root)
    scans = find_data(root, layout="mnms").scans
    assert [(s.name, s.patient, s.phase, s.frame) for s in scans] == [
        ("A0S9V9_frame00", "A0S9V9", "ES", 0),
        ("A0S9V9_frame02", "A0S9V9", "ED", 2),
        ("B1_frame01", "B1", "ED", 1),
        ("B1_frame02", "B1", "ES", 2),
    ]
    assert scans[0].meta == {"vendor": "A", "centre": "1", "group": "HCM"}
    assert scans[2].meta == {"vendor": "B", "centre": "3"}


def test_frames_and_classes(root):
    volume = read_scan(find_data(root, layout="mnms").scans[1])
    assert volume.image.min() == volume.image.max() == 20
    assert volume.spacing_mm == pytest.approx((9.0, 1.2, 1.2))
    names = [find_data(root, layout="mnms").scans[1].class_names[k] for k in volume.mask[0, :, 0]]
    assert names == ["LV", "MYO", "RV", "background", "background"]


# the folder of the patients, and the one above it
@pytest.mark.parametrize("sub", ["Training", "Training/Labeled"])
def test_folders_below_the_csv_file(root, sub):
    assert LAYOUT.recognises(root / sub)
    assert len(find_data(root / sub, layout="mnms").scans) == 4


# a file, a row or a cell away
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + ROWS["B1"], "must have a row for A0S9V9"),
        (HEADER + "0,A0S9V9,Siemens,A,1,,0,48,HCM\n" + ROWS["B1"], "must give ED of A0S9V9"),
        (
            HEADER + "0,A0S9V9,Siemens,A,1,2,2,48,HCM\n" + ROWS["B1"],
            "ED and ES of A0S9V9, got 2",
        ),
        (HEADER.replace("ED", "end") + ROWS["B1"], "must have a column 'ED'"),
        ("", "must have a column 'External code'"),
    ],
)
def test_csv_errors(root, text, message):
    (root / NAME).write_text(text)
    with pytest.raises(DataError, match=message) as error:
        find_data(root, layout="mnms")
    assert NAME in str(error.value)


def test_missing_files(root):
    (root / NAME).unlink()
    with pytest.raises(DataError, match="must hold the CSV file of M&Ms"):
        find_data(root, layout="mnms")


def test_frame_beyond_the_file(root):
    (root / NAME).write_text(HEADER + "0,A0S9V9,,A,1,7,0,,\n" + ROWS["B1"])
    scan = find_data(root, layout="mnms").scans[1]
    with pytest.raises(DataError, match=r"frame 7 \(from 0\), got 3 frames"):
        read_scan(scan)
