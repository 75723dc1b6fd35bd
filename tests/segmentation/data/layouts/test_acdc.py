"""Finding scans in ACDC's layout; one clear sentence for each thing that is missing.

Real volumes are read where ../shared/data exists and skipped elsewhere.
"""

import nibabel
import numpy as np
import pytest

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.find import find_data
from spcl_fast.segmentation.data.layouts.acdc import LAYOUT
from spcl_fast.segmentation.data.volume import read_scan

AFFINE = np.diag([1.5, 1.25, 8.0, 1.0])


def save(path, array, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def add_patient(root, name="patient001", ed=1, es=7, group="NOR", suffix=".nii.gz"):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "Info.cfg").write_text(f"ED: {ed}\nES: {es}\nGroup: {group}\nNbFrame: 30\n")
    rng = np.random.default_rng(0)
    for frame in (ed, es):
        image = rng.integers(0, 255, (9, 7, 5)).astype(np.int16)
        mask = rng.integers(0, 4, (9, 7, 5)).astype(np.uint8)
        save(folder / f"{name}_frame{frame:02d}{suffix}", image)
        save(folder / f"{name}_frame{frame:02d}_gt{suffix}", mask)
    return folder


# the layouts that ACDC's archives unpack to
@pytest.mark.parametrize("sub", [".", "training", "database", "database/training"])
def test_layouts(tmp_path, sub):
    add_patient(tmp_path / sub, "patient002")
    add_patient(tmp_path / sub, "SCD0000101", ed=12, es=3, group="")
    assert LAYOUT.recognises(tmp_path)
    scans = find_data(tmp_path, layout="acdc").scans
    names = ["SCD0000101_frame03", "SCD0000101_frame12", "patient002_frame01", "patient002_frame07"]
    assert [scan.name for scan in scans] == names
    assert [scan.phase for scan in scans] == ["ES", "ED", "ED", "ES"]
    assert [dict(scan.meta) for scan in scans] == [{}, {}, {"group": "NOR"}, {"group": "NOR"}]
    assert scans[2].patient == "patient002"
    assert scans[2].mask.name == "patient002_frame01_gt.nii.gz"


def test_uncompressed_and_hidden_folders(tmp_path):
    add_patient(tmp_path, suffix=".nii")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "notes").mkdir()
    assert len(find_data(tmp_path, layout="acdc").scans) == 2


def test_no_patients(tmp_path):
    (tmp_path / "training").mkdir()
    assert LAYOUT.find(tmp_path) == []


# one file or line taken away or spoilt at a time
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "Info.cfg").unlink(), "Info.cfg must exist"),
        (lambda f: (f / "Info.cfg").write_text("ES: 7\n"), "Info.cfg must have a line 'ED:"),
        (lambda f: (f / "Info.cfg").write_text("ED: 1\n"), "Info.cfg must have a line 'ES:"),
        (
            lambda f: (f / "Info.cfg").write_text("ED: one\nES: 7\n"),
            "must give ED of patient001 as a num",
        ),
        (
            lambda f: (f / "Info.cfg").write_text("ED: 7\nES: 7\n"),
            "ES of patient001, got 7 twice",
        ),
        (lambda f: (f / "Info.cfg").write_text("ED: 2\nES: 7\n"), "frame02.nii.gz must exist"),
        (lambda f: (f / "patient001_frame07.nii.gz").unlink(), "frame07.nii.gz must exist"),
    ],
)
def test_layout_errors(tmp_path, spoil, message):
    spoil(add_patient(tmp_path))
    with pytest.raises(DataError, match=message) as error:
        find_data(tmp_path, layout="acdc")
    assert str(tmp_path / "patient001") in str(error.value)


def test_patient_folder_without_anything_is_an_error(tmp_path):
    add_patient(tmp_path)
    (tmp_path / "patient002").mkdir()
    with pytest.raises(DataError, match=r"patient002.Info.cfg must exist"):
        find_data(tmp_path, layout="acdc")


def test_other_cases_are_found_beside_a_broken_one(tmp_path):
    add_patient(tmp_path)
    (add_patient(tmp_path, "patient002") / "Info.cfg").unlink()
    good, bad = LAYOUT.find(tmp_path)
    assert [scan.phase for scan in good] == ["ED", "ES"]
    assert isinstance(bad, DataError)


# folders of images in other layouts
@pytest.mark.parametrize("name", ["A0S9V9/A0S9V9_sa.nii.gz", "imagesTr/a.nii.gz", "Case00.mhd"])
def test_other_folders_are_not_recognised(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert not LAYOUT.recognises(tmp_path)


def test_real_acdc(real_data):
    scans = find_data(real_data / "acdc", layout="acdc").scans
    assert len(scans) == 160
    assert len({scan.patient for scan in scans}) == 80
    phases = {scan.name: scan.phase for scan in scans if scan.patient == "patient090"}
    assert phases == {"patient090_frame04": "ED", "patient090_frame11": "ES"}
    assert {scan.meta["group"] for scan in scans} == {"DCM", "HCM", "MINF", "NOR", "RV"}
    volume = read_scan(scans[0])
    assert set(np.unique(volume.mask)) == {0, 1, 2, 3}
    assert volume.spacing_mm == (10.0, 1.5, 1.5)


# what Windows editors write; an old file in Latin-1 keeps its ASCII lines
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "latin-1"])
def test_encodings_of_info_cfg(tmp_path, encoding):
    folder = add_patient(tmp_path)
    text = "ED: 1\nES: 7\nGroup: NOR\nDoctor: M\u00fcller\n"
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    (folder / "Info.cfg").write_bytes(mark + text.encode(encoding))
    scans = find_data(tmp_path, layout="acdc").scans
    assert [scan.phase for scan in scans] == ["ED", "ES"]
    assert scans[0].meta == {"group": "NOR"}
