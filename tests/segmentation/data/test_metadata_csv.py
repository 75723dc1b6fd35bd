"""Meta-labels from a CSV file, joined to the scans of a data set."""

import pytest

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.find import find_data
from spcl_fast.segmentation.data.metadata_csv import read_metadata_csv


def add_patient(root, name="patient001"):
    """Only names matter here: no file is read."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "Info.cfg").write_text("ED: 1\nES: 7\nGroup: NOR\n")
    for frame in ("01", "07"):
        (folder / f"{name}_frame{frame}.nii.gz").touch()
        (folder / f"{name}_frame{frame}_gt.nii.gz").touch()


def test_csv_by_scan_and_by_patient(tmp_path):
    add_patient(tmp_path / "data")
    add_patient(tmp_path / "data", "patient002")
    table = tmp_path / "meta.csv"
    table.write_text("\ufeffscan,vendor,age\npatient001_frame07, A ,61\npatient002_frame01,B,\n")
    meta = {scan.name: dict(scan.meta) for scan in find_data(tmp_path / "data", table).scans}
    assert meta["patient001_frame01"] == {"group": "NOR"}
    assert meta["patient001_frame07"] == {"group": "NOR", "vendor": "A", "age": "61"}
    assert meta["patient002_frame01"] == {"group": "NOR", "vendor": "B"}
    table.write_text("patient,group\npatient002,HCM\n")
    meta = {scan.name: dict(scan.meta) for scan in find_data(tmp_path / "data", table).scans}
    assert meta["patient001_frame01"] == {"group": "NOR"}
    assert meta["patient002_frame07"] == {"group": "HCM"}


# every rule that read_metadata_csv and with_metadata state
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "scan,vendor\npatient009_frame01,A\n",
            "known scan in every row, got 'patient009_frame01'",
        ),
        ("patient,vendor\npatient009,A\n", "known patient in every row, got 'patient009'"),
        (
            "name,vendor\npatient001,A\n",
            "must have a column 'scan' or 'patient', got .'name', 'vendor'",
        ),
        ("", "must have a column 'scan' or 'patient'"),
        ("patient,vendor\npatient001,A\npatient001,B\n", "got 'patient001' twice"),
        ("patient,vendor,vendor\npatient001,A,B\n", "repeated name 'vendor'"),
        ("patient,\npatient001,A\n", "repeated name ''"),
        ("patient,phase\npatient001,ED\n", "reserved name 'phase'"),
        ("patient,vendor\npatient001\n", "2 cells in row 2, got 1"),
        ("patient,slice,v\npatient001,0,A\n", "must have a column 'scan' beside 'slice'"),
        ("scan,slice,v\npatient001_frame01,x,A\n", "must number slices 0, 1, ..., got 'x'"),
        ("scan,slice,v\na,0,A\na,0,B\n", "must list each slice once, got a 0 twice"),
        ("scan,slice,v\npatient009_frame01,0,A\n", "known scan in every row"),
        ("scan,slice,patient,v\na,0,p,A\na,1,q,B\n", "must give a one patient, got p and another"),
    ],
)
def test_csv_errors(tmp_path, text, message):
    add_patient(tmp_path / "data")
    table = tmp_path / "meta.csv"
    table.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        find_data(tmp_path / "data", table)
    assert str(table) in str(error.value)


def test_csv_missing_or_binary(tmp_path):
    with pytest.raises(DataError, match="readable UTF-8 CSV"):
        read_metadata_csv(tmp_path / "absent.csv")
    (tmp_path / "b.csv").write_bytes(b"scan,\xff\xfe\n")
    with pytest.raises(DataError, match="readable UTF-8 CSV"):
        read_metadata_csv(tmp_path / "b.csv")


def test_table_in_utf_16(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("patient,site\np1,Z\u00fcrich\n", encoding="utf-16")
    assert read_metadata_csv(path).rows == {"p1": {"site": "Z\u00fcrich"}}
