"""Finding, reading and writing scans in ACDC layout; one clear sentence for each bad input.

Real volumes are read where ../shared/data exists and skipped elsewhere.
"""

import nibabel
import numpy as np
import pytest

from spcl_fast.data.acdc import find_scans, read_metadata_csv
from spcl_fast.data.scan import DataError, read_image, read_scan, write_labels

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
    scans = find_scans(tmp_path)
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
    assert len(find_scans(tmp_path)) == 2


def test_array_is_transposed(tmp_path):
    array = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)  # (x, y, z)
    save(tmp_path / "a.nii.gz", array)
    image, spacing_mm, affine = read_image(tmp_path / "a.nii.gz")
    assert image.shape == (4, 3, 2)
    assert image[3, 2, 1] == array[1, 2, 3]
    assert image.dtype == np.float32
    assert spacing_mm == (8.0, 1.25, 1.5)
    np.testing.assert_array_equal(affine, AFFINE)


# no root, no patient in it
def test_root_errors(tmp_path):
    with pytest.raises(DataError, match="absent must be a folder"):
        find_scans(tmp_path / "absent")
    with pytest.raises(DataError, match="must hold patient folders"):
        find_scans(tmp_path)


# one file or line taken away or spoilt at a time
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "Info.cfg").unlink(), "Info.cfg must exist"),
        (lambda f: (f / "Info.cfg").write_text("ES: 7\n"), "Info.cfg must have a line 'ED:"),
        (lambda f: (f / "Info.cfg").write_text("ED: 1\n"), "Info.cfg must have a line 'ES:"),
        (lambda f: (f / "Info.cfg").write_text("ED: one\nES: 7\n"), "must give ED as a number"),
        (lambda f: (f / "Info.cfg").write_text("ED: 7\nES: 7\n"), "different frames"),
        (lambda f: (f / "Info.cfg").write_text("ED: 2\nES: 7\n"), "frame02.nii.gz must exist"),
        (lambda f: (f / "patient001_frame07.nii.gz").unlink(), "frame07.nii.gz must exist"),
        (lambda f: (f / "patient001_frame07_gt.nii.gz").unlink(), "frame07_gt.nii.gz must exist"),
    ],
)
def test_layout_errors(tmp_path, spoil, message):
    spoil(add_patient(tmp_path))
    with pytest.raises(DataError, match=message) as error:
        find_scans(tmp_path)
    assert str(tmp_path / "patient001") in str(error.value)


def test_patient_folder_without_anything_is_an_error(tmp_path):
    add_patient(tmp_path)
    (tmp_path / "patient002").mkdir()
    with pytest.raises(DataError, match=r"patient002.Info.cfg must exist"):
        find_scans(tmp_path)


ED = "patient001_frame01.nii.gz"
ED_GT = "patient001_frame01_gt.nii.gz"


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def flat(value, dtype=np.float32):
    return np.full((9, 7, 5), value, dtype)


# the ways in which a volume goes bad: bytes lost here and there, other formats, values, labels
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: cut(f / ED, 0.0), "must be a complete NIfTI file"),
        (lambda f: cut(f / ED, 0.1), "must be a complete NIfTI file"),
        (lambda f: cut(f / ED, 0.5), "must be a complete NIfTI file"),
        (lambda f: cut(f / ED, 0.9), "must be a complete NIfTI file"),
        (lambda f: cut(f / ED_GT, 0.9), "_gt.nii.gz must be a complete NIfTI file"),
        (lambda f: (f / ED).write_bytes(b"not an image " * 99), "must be a complete NIfTI file"),
        (lambda f: save(f / ED, flat(np.nan)), "finite values, got 315 NaN"),
        (lambda f: save(f / ED, flat(np.inf)), "finite values"),
        (lambda f: save(f / ED, flat(1e300, np.float64)), "finite values"),
        (lambda f: save(f / ED_GT, flat(np.nan)), "_gt.nii.gz must hold finite values"),
        (lambda f: save(f / ED, flat(1)[..., None]), "must hold a 3-D volume"),
        (lambda f: save(f / ED, flat(1)[0]), "must hold a 3-D volume"),
        (lambda f: save(f / ED, flat(1j, np.complex64)), "must hold real numbers"),
        (lambda f: save(f / ED, flat(1)[1:]), r"shape of its image, \(8, 7, 5\), got \(9, 7, 5\)"),
        (lambda f: save(f / ED_GT, flat(4, np.uint8)), r"labels in 0\.\.3, got 4"),
        (lambda f: save(f / ED_GT, flat(-1)), r"labels in 0\.\.3, got -1"),
        (lambda f: save(f / ED_GT, flat(1.5)), r"labels in 0\.\.3, got 1\.5"),
    ],
)
def test_content_errors(tmp_path, spoil, message):
    spoil(add_patient(tmp_path))
    scan = find_scans(tmp_path)[0]  # finding does not read contents
    with pytest.raises(DataError, match=message) as error:
        read_scan(scan)
    assert str(tmp_path / "patient001" / "patient001_frame01") in str(error.value)
    assert "\n" not in str(error.value)


def test_voxel_size_must_be_positive(tmp_path):
    folder = add_patient(tmp_path)
    nifti = nibabel.Nifti1Image(flat(1), AFFINE)
    nifti.header["pixdim"][3] = np.inf  # nibabel itself replaces 0 by 1, with a warning
    nibabel.save(nifti, folder / ED)
    with pytest.raises(DataError, match="positive voxel size"):
        read_image(folder / ED)


# one flipped byte goes unnoticed or is a DataError, nothing else; the header of a plain file, and
# all of a compressed one (broken streams and checksums)
@pytest.mark.parametrize(("name", "num_bytes"), [("a.nii", 352), ("a.nii.gz", None)])
def test_damaged_bytes(tmp_path, name, num_bytes):
    path = tmp_path / name
    save(path, np.arange(120, dtype=np.int16).reshape(4, 5, 6))
    good = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for position in range(num_bytes or len(good)):
        bad = bytearray(good)
        bad[position] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(bad))
        try:
            read_image(path)
        except DataError:
            refused += 1
    assert refused > 10


def test_missing_image(tmp_path):
    with pytest.raises(DataError, match=r"must be an existing \.nii"):
        read_image(tmp_path / "a.nii.gz")


def test_num_classes(tmp_path):
    folder = add_patient(tmp_path)
    scan = find_scans(tmp_path)[0]
    assert read_scan(scan).mask.max() == 3
    with pytest.raises(DataError, match=r"labels in 0\.\.1, got 2, 3"):
        read_scan(scan, num_classes=2)
    assert folder.is_dir()


# both extensions
@pytest.mark.parametrize("name", ["labels.nii", "labels.nii.gz"])
def test_write_labels_round_trip(tmp_path, name):
    labels = np.random.default_rng(0).integers(0, 4, (5, 7, 9)).astype(np.uint8)
    affine = np.array([[0, -1.5, 0, 3], [1.25, 0, 0, -4], [0, 0, 8, 5], [0, 0, 0, 1.0]])
    path = tmp_path / name
    path.write_bytes(b"previous")
    with path.open("rb") as reader:
        write_labels(path, labels, affine)
        assert reader.read() == b"previous"  # replaced, not overwritten
    back, spacing_mm, back_affine = read_image(path)
    np.testing.assert_array_equal(back, labels)
    np.testing.assert_array_equal(back_affine, affine)
    assert spacing_mm == (8.0, 1.5, 1.25)
    assert nibabel.load(path).get_data_dtype() == np.uint8
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_interrupted_write_keeps_the_previous_file(tmp_path, monkeypatch):
    def fail(image, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    path = tmp_path / "labels.nii.gz"
    path.write_bytes(b"previous")
    monkeypatch.setattr(nibabel, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_labels(path, np.zeros((2, 3, 4), np.uint8), AFFINE)
    assert path.read_bytes() == b"previous"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_write_labels_refuses(tmp_path):
    with pytest.raises(ValueError, match="labels must be 3-D uint8"):
        write_labels(tmp_path / "a.nii.gz", np.zeros((2, 3), np.uint8), AFFINE)
    with pytest.raises(ValueError, match="labels must be 3-D uint8"):
        write_labels(tmp_path / "a.nii.gz", np.zeros((2, 3, 4), np.int64), AFFINE)
    with pytest.raises(ValueError, match=r"path must end in \.nii"):
        write_labels(tmp_path / "a.png", np.zeros((2, 3, 4), np.uint8), AFFINE)


def test_csv_by_scan_and_by_patient(tmp_path):
    add_patient(tmp_path / "data")
    add_patient(tmp_path / "data", "patient002")
    table = tmp_path / "meta.csv"
    table.write_text("\ufeffscan,vendor,age\npatient001_frame07, A ,61\npatient002_frame01,B,\n")
    meta = {scan.name: dict(scan.meta) for scan in find_scans(tmp_path / "data", table)}
    assert meta["patient001_frame01"] == {"group": "NOR"}
    assert meta["patient001_frame07"] == {"group": "NOR", "vendor": "A", "age": "61"}
    assert meta["patient002_frame01"] == {"group": "NOR", "vendor": "B"}
    table.write_text("patient,group\npatient002,HCM\n")
    meta = {scan.name: dict(scan.meta) for scan in find_scans(tmp_path / "data", table)}
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
    ],
)
def test_csv_errors(tmp_path, text, message):
    add_patient(tmp_path / "data")
    table = tmp_path / "meta.csv"
    table.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        find_scans(tmp_path / "data", table)
    assert str(table) in str(error.value)


def test_csv_missing_or_binary(tmp_path):
    with pytest.raises(DataError, match="readable UTF-8 CSV"):
        read_metadata_csv(tmp_path / "absent.csv")
    (tmp_path / "b.csv").write_bytes(b"scan,\xff\xfe\n")
    with pytest.raises(DataError, match="readable UTF-8 CSV"):
        read_metadata_csv(tmp_path / "b.csv")


def test_real_acdc(real_data):
    scans = find_scans(real_data / "acdc")
    assert len(scans) == 160
    assert len({scan.patient for scan in scans}) == 80
    phases = {scan.name: scan.phase for scan in scans if scan.patient == "patient090"}
    assert phases == {"patient090_frame04": "ED", "patient090_frame11": "ES"}
    assert {scan.meta["group"] for scan in scans} == {"DCM", "HCM", "MINF", "NOR", "RV"}
    volume = read_scan(scans[0])
    assert set(np.unique(volume.mask)) == {0, 1, 2, 3}
    assert volume.spacing_mm == (10.0, 1.5, 1.5)


def test_real_sunnybrook(tmp_path, real_data):
    scans = find_scans(real_data / "sunnybrook5")
    assert len(scans) == 10
    for scan in scans:
        volume = read_scan(scan)
        assert volume.image.shape[1:] == (256, 256)
        assert volume.mask.max() == 3
        write_labels(tmp_path / "labels.nii.gz", volume.mask, volume.affine)
        back, _, affine = read_image(tmp_path / "labels.nii.gz")
        np.testing.assert_array_equal(back, volume.mask)
        # headers store affines in float32
        np.testing.assert_array_equal(affine, volume.affine)
