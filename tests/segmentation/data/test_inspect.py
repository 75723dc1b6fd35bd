"""Inspecting a folder: the figures it reports, and that bad scans are told rather than fatal."""

import json

import nibabel
import numpy as np
import pytest

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.grid import Grid
from spcl_fast.segmentation.data.inspect import inspect
from spcl_fast.segmentation.data.inspection_text import render
from spcl_fast.segmentation.data.layouts.layout import Choice
from spcl_fast.segmentation.data.metaimage import write_metaimage


def save(path, array, spacing=1.5):
    nibabel.save(nibabel.Nifti1Image(array, np.diag([spacing, spacing, 8.0, 1.0])), path)


def add_patient(root, name, group, shape=(40, 30, 4), spacing=1.5):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "Info.cfg").write_text(f"ED: 1\nES: 7\nGroup: {group}\n")
    mask = np.zeros(shape, np.uint8)
    mask[18:22, 10:20, 1:] = 3  # slice 0 has no label
    mask[0:2, 10:20, 1:] = 1
    for frame in ("01", "07"):
        save(
            folder / f"{name}_frame{frame}.nii.gz",
            np.arange(np.prod(shape), dtype=np.int16).reshape(shape),
            spacing,
        )
        save(folder / f"{name}_frame{frame}_gt.nii.gz", mask, spacing)
    return folder


@pytest.fixture
def root(tmp_path):
    add_patient(tmp_path / "data", "patient001", "NOR")
    add_patient(tmp_path / "data", "patient002", "DCM", shape=(44, 36, 6), spacing=1.25)
    return tmp_path / "data"


def test_figures(root, tmp_path):
    (tmp_path / "meta.csv").write_text("patient,vendor\npatient001,A\n")
    report = inspect(root, tmp_path / "meta.csv", Grid(32, 1.5))
    assert (report.patients, report.scans, report.slices) == (2, 4, 20)
    assert report.unlabelled_slices == 4
    assert report.shape_range == ((4, 30, 40), (6, 36, 44))
    assert report.spacing_range == ((8.0, 1.25, 1.25), (8.0, 1.5, 1.5))
    # 2 phases x (3 + 5) labelled slices x 20 (RV) or 40 (LV) pixels
    assert report.label_voxels["RV"] == 320
    assert report.label_voxels["LV"] == 640
    assert report.label_voxels["MYO"] == 0
    assert sum(report.label_voxels.values()) == 2 * (40 * 30 * 4 + 44 * 36 * 6)
    # the RV stripe of patient001 lies in the 4 columns that 32 x 1.5 mm cut from either side of 40
    assert report.cropped_scans == 4
    assert report.foreground_outside == pytest.approx(320 / 960)
    assert report.meta_labels == {
        "phase": {"ED": 2, "ES": 2},
        "group": {"DCM": 2, "NOR": 2},
        "vendor": {"A": 2, "unknown": 2},
    }
    assert report.problems == []


def test_large_grid_leaves_nothing_out(root):
    report = inspect(root)
    assert report.grid == Grid()
    assert report.foreground_outside == 0
    assert report.cropped_scans == 0


def test_text(root):
    lines = render(inspect(root))
    text = "\n".join(lines)
    assert "layout      acdc" in lines
    assert "patients    2" in lines
    assert "slices      20 (4 without a label)" in lines
    assert "size        rows 30..36, columns 40..44, slices 4..6" in lines
    assert "label       LV: 640 voxels" in text
    assert "meta-label  group: DCM 2, NOR 2" in lines
    assert lines[-1] == "problems    none"
    assert text.isascii()


def test_share_of_fill(root):
    assert inspect(root).fill_share == 0
    image = np.arange(40 * 30 * 4, dtype=np.int16).reshape(40, 30, 4) % 1000
    image[:6] = -32768
    save(root / "patient001" / "patient001_frame01.nii.gz", image)
    report = inspect(root)
    assert report.fill_share == pytest.approx(6 * 30 * 4 / (2 * (40 * 30 * 4 + 44 * 36 * 6)))
    line = next(line for line in render(report) if line.startswith("fill "))
    assert "2.52 % of the voxels" in line


def test_many_categories_are_shortened(root, tmp_path):
    for number in range(3, 13):
        add_patient(root, f"patient{number:03d}", f"g{number:02d}")
    line = next(line for line in render(inspect(root)) if "group" in line)
    assert line.endswith("... (12 in all)")


def test_every_bad_scan_is_told_and_inspection_goes_on(root, tmp_path):
    broken = add_patient(root, "patient003", "NOR")
    path = broken / "patient003_frame01.nii.gz"
    path.write_bytes(path.read_bytes()[:100])
    save(broken / "patient003_frame07_gt.nii.gz", np.full((40, 30, 4), 9, np.uint8))
    (add_patient(root, "patient004", "NOR") / "Info.cfg").unlink()
    blank = add_patient(root, "patient005", "NOR")
    save(blank / "patient005_frame07_gt.nii.gz", np.zeros((40, 30, 4), np.uint8))
    (tmp_path / "meta.csv").write_text("patient,vendor\npatient077,A\n")
    report = inspect(root, tmp_path / "meta.csv")
    assert (report.patients, report.scans) == (3, 6)
    expected = [
        "patient004",  # no Info.cfg
        "patient077",  # the CSV names an unknown patient
        "patient003_frame01.nii.gz must be a complete NIfTI file",
        "patient003_frame07_gt.nii.gz must hold labels in 0..3, got 9",
        "patient005_frame07_gt.nii.gz must hold labelled voxels",
    ]
    assert len(report.problems) == len(expected)
    for problem, words in zip(report.problems, expected, strict=True):
        assert words in problem
        assert problem.endswith(".")
        assert "\n" not in problem
    assert sum(line.startswith("problem ") for line in render(report)) == 5


def test_nothing_readable(tmp_path):
    for path in add_patient(tmp_path, "patient001", "NOR").glob("*.nii.gz"):
        path.write_bytes(b"")
    report = inspect(tmp_path)
    assert report.scans == 0
    assert len(report.problems) == 2
    assert len(render(report)) == 7


def test_no_data_at_all(tmp_path):
    with pytest.raises(DataError, match="must be a folder"):
        inspect(tmp_path / "absent")
    with pytest.raises(DataError, match="must be a folder in one of the layouts"):
        inspect(tmp_path)


def test_another_layout(tmp_path):
    for number in range(2):
        mask = np.zeros((6, 8, 8), np.int8)
        mask[2:4, 3:5, 3:5] = number + 1  # 2 is no class
        write_metaimage(tmp_path / f"Case0{number}.mhd", mask.astype(np.int16), (3.6, 0.6, 0.6))
        write_metaimage(tmp_path / f"Case0{number}_segmentation.mhd", mask, (3.6, 0.6, 0.6))
    report = inspect(tmp_path)
    assert (report.layout, report.scans) == ("promise12", 1)
    assert report.label_voxels == {"background": 6 * 64 - 8, "prostate": 8}
    assert report.meta_labels == {"phase": {"unknown": 1}}
    (problem,) = report.problems
    assert "Case01_segmentation.mhd must hold labels in 0..1, got 2" in problem
    assert inspect(tmp_path, layout="promise12") == report


def test_readable_scans_are_named_but_not_in_json(root):
    (root / "patient001" / "patient001_frame01.nii.gz").write_bytes(b"")
    report = inspect(root)
    assert [scan.name for scan in report.readable] == [
        "patient001_frame07",
        "patient002_frame01",
        "patient002_frame07",
    ]
    facts = report.facts()
    assert "readable" not in facts
    assert facts["grid"] == {"size": report.grid.size, "spacing_mm": report.grid.spacing_mm}
    assert json.loads(json.dumps(facts))["scans"] == 3


def test_real_sunnybrook(real_data):
    report = inspect(real_data / "sunnybrook5")
    assert (report.patients, report.scans, report.slices) == (5, 10, 114)
    assert report.label_voxels["RV"] == 0
    assert report.label_voxels["LV"] > report.label_voxels["MYO"] > 0
    assert report.problems == []


def test_real_prostate(real_data):
    report = inspect(real_data / "promise12_layout_sample")
    assert (report.layout, report.scans, report.slices) == ("promise12", 1, 19)
    assert report.label_voxels["prostate"] > 10_000
    assert report.problems == []


def test_image_of_one_value(root):
    path = root / "patient001" / "patient001_frame01.nii.gz"
    save(path, np.full((40, 30, 4), 7, np.int16))
    assert inspect(root).problems == [f"{path} must hold several values, got one."]


def test_scans_without_masks_are_counted_and_named(root):
    (root / "patient001" / "patient001_frame07_gt.nii.gz").unlink()
    (root / "patient002" / "patient002_frame07_gt.nii.gz").unlink()
    report = inspect(root)
    assert report.unlabelled == ["patient001_frame07", "patient002_frame07"]
    assert report.slices == 20
    assert report.unlabelled_slices == 2
    assert report.label_voxels["RV"] == 160
    lines = render(report)
    assert "scans       4 (2 labelled, 2 unlabelled)" in lines
    assert "unlabelled  patient001_frame07, patient002_frame07" in lines
    assert lines[-1] == "problems    none"


def test_what_is_left_out_is_named(tmp_path):
    add_patient(tmp_path / "training", "patient001", "NOR")
    add_patient(tmp_path / "testing", "patient101", "NOR")
    report = inspect(tmp_path)
    assert report.left_out == ["patient101_frame01", "patient101_frame07"]
    (line,) = (line for line in render(report) if line.startswith("left out "))
    assert "patient101_frame01, patient101_frame07: in folders without labels" in line
    wide = inspect(tmp_path, choice=Choice(unlabelled_folders=True))
    assert (wide.scans, wide.left_out) == (4, [])


def test_no_labels_at_all(tmp_path):
    (tmp_path / "images").mkdir()
    save(tmp_path / "images" / "a.nii.gz", np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    text = "\n".join(render(inspect(tmp_path)))
    assert "scans       1 (0 labelled, 1 unlabelled)" in text
    assert "nan" not in text
    assert text.endswith("problems    none")
