"""A layout is recognised, or the folder is refused with the names of those that are known."""

import json
import typing
from dataclasses import replace

import numpy as np
import pytest

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.find import LAYOUTS, find_data, recognise
from spcl_fast.segmentation.data.layouts import LayoutName
from spcl_fast.segmentation.data.layouts.layout import Choice

# files that make a folder one of each layout; their contents do not matter here
FILES = {
    "acdc": [
        *("training/p1/Info.cfg", "training/p1/p1_frame01.nii.gz", "training/p1/p1_frame09.nii.gz"),
        *("training/p1/p1_frame01_gt.nii.gz", "training/p1/p1_frame09_gt.nii.gz"),
    ],
    "promise12": ["training_data/Case00.mhd", "training_data/Case00_segmentation.mhd"],
    "mmwhs": ["mr_train/mr_train_1001_image.nii.gz", "mr_train/mr_train_1001_label.nii.gz"],
    "msd": ["dataset.json", "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"],
    "mnms": [
        *("M&Ms_Dataset_information.csv", "Training/Labeled/X/X_sa.nii.gz"),
        "Training/Labeled/X/X_sa_gt.nii.gz",
    ],
    "ssl4mis": ["data/patient001_frame01.h5", "train.list"],
    "folder": ["images/a.nii.gz", "labels/a.nii", "classes.txt"],
}
TEXTS = {
    "Info.cfg": "ED: 1\nES: 9\n",
    "classes.txt": "background\nliver\n",
    "dataset.json": json.dumps({"channel_names": {"0": "MRI"}, "labels": {"a": 0, "b": 1}}),
    "M&Ms_Dataset_information.csv": "External code,ED,ES\nX,0,9\n",
}
NUM_CLASSES = {
    "acdc": 4,
    "promise12": 2,
    "mmwhs": 8,
    "msd": 2,
    "mnms": 4,
    "ssl4mis": 4,
    "folder": 2,
}


def make(root, layout):
    for name in FILES[layout]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TEXTS.get(path.name, ""))
    return root


@pytest.mark.parametrize("layout", FILES)  # every layout on disk
def test_every_layout_is_recognised(tmp_path, layout):
    root = make(tmp_path, layout)
    assert recognise(root) == layout
    found = find_data(root)
    assert found.layout == layout
    assert len(found.class_names) == NUM_CLASSES[layout]
    assert len(found.scans) == (2 if layout in ("acdc", "mnms") else 1)
    assert {scan.class_names for scan in found.scans} == {found.class_names}
    assert find_data(root, layout=layout) == found


def test_the_four_classes_of_mmwhs_are_asked_for(tmp_path):
    found = find_data(make(tmp_path, "mmwhs"), layout="mmwhs4")
    assert found.class_names == ("background", "AA", "LA", "LV", "MYO")
    assert found.scans[0].class_names == found.class_names


def test_names_are_those_of_the_command_line():
    assert typing.get_args(LayoutName) == ("auto", *LAYOUTS)


def test_no_layout_or_several(tmp_path):
    known = "acdc, promise12, mmwhs, mmwhs4, msd, mnms, ssl4mis, folder"
    with pytest.raises(DataError, match=f"one of the layouts {known}, got none of them"):
        find_data(tmp_path)
    make(make(tmp_path, "promise12"), "ssl4mis")
    with pytest.raises(DataError, match="got promise12 and ssl4mis: choose one"):
        find_data(tmp_path)
    assert find_data(tmp_path, layout="ssl4mis").layout == "ssl4mis"
    with pytest.raises(DataError, match="must be a folder, got no such folder"):
        find_data(tmp_path / "absent")


def test_a_named_layout_that_it_is_not(tmp_path):
    with pytest.raises(DataError, match="scans in layout promise12, got none"):
        find_data(tmp_path, layout="promise12")
    with pytest.raises(DataError, match="scans in layout acdc, got none"):
        find_data(tmp_path, layout="acdc")
    with pytest.raises(DataError, match="in layout brats, got no such"):
        find_data(tmp_path, layout="brats")


@pytest.mark.parametrize("layout", FILES)  # a table fits every layout
def test_a_csv_file_joins_every_layout(tmp_path, layout):
    root = make(tmp_path / "data", layout)
    patient = find_data(root).scans[0].patient
    table = tmp_path / "table.csv"
    table.write_text(f"patient,scanner\n{patient},T3\n")
    assert {scan.meta["scanner"] for scan in find_data(root, table).scans} == {"T3"}


def test_problems_are_collected(tmp_path):
    root = make(tmp_path / "data", "promise12")
    (root / "training_data" / "Case07_segmentation.mhd").touch()
    (tmp_path / "table.csv").write_text("patient,scanner\nnobody,T3\n")
    problems = []
    found = find_data(root, tmp_path / "table.csv", problems=problems)
    assert [scan.name for scan in found.scans] == ["Case00"]
    assert "Case07.mhd must exist" in problems[0]
    assert "got 'nobody'" in problems[1]
    with pytest.raises(DataError, match=r"Case07.mhd must exist"):
        find_data(root)


def make_sites(root, pairs):
    """Write a data set of the Decathlon whose cases lie in folders."""
    for path in (root / name for pair in pairs for name in pair):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    training = [{"image": image, "label": label} for image, label in pairs]
    content = {"labels": {"0": "a", "1": "b"}, "training": training}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def named(root, problems=None):
    return [(scan.name, scan.patient) for scan in find_data(root, problems=problems).scans]


def test_cases_of_one_name_in_two_folders(tmp_path):
    names = ("A/000", "A/001", "B/000", "B/002")
    pairs = [(f"imagesTr/{name}.nii.gz", f"labelsTr/{name}.nii.gz") for name in names]
    root = make_sites(tmp_path, pairs)
    expected = [("001", "001"), ("002", "002"), ("A_000", "A_000"), ("B_000", "B_000")]
    assert named(root) == expected
    for scan in find_data(root).scans[2:]:
        assert scan.mask.parent.name == scan.name[0]


def test_every_frame_of_a_repeated_patient_goes_with_it(tmp_path):
    names = ("A/p1_frame01", "B/p1_frame01", "B/p1_frame07")
    pairs = [(f"imagesTr/{name}.nii.gz", f"labelsTr/{name}.nii.gz") for name in names]
    assert named(make_sites(tmp_path, pairs)) == [
        ("A_p1_frame01", "A_p1"),
        ("B_p1_frame01", "B_p1"),
        ("B_p1_frame07", "B_p1"),
    ]


def test_two_images_of_one_mask_are_one_patient(tmp_path):
    pairs = [(f"imagesTr/{kind}/000.nii.gz", "labelsTr/000.nii.gz") for kind in ("T1", "T2")]
    assert named(make_sites(tmp_path, pairs)) == [("T1_000", "000"), ("T2_000", "000")]


def test_parts_of_promise12(tmp_path):
    for part in (1, 2):
        for name in ("Case00.mhd", "Case00_segmentation.mhd"):
            path = tmp_path / f"TrainingData_Part{part}" / name
            path.parent.mkdir(exist_ok=True)
            path.touch()
    names = ["TrainingData_Part1_Case00", "TrainingData_Part2_Case00"]
    assert named(tmp_path) == [(name, name) for name in names]


def test_a_case_that_is_listed_twice(tmp_path):
    root = make_sites(tmp_path, [("imagesTr/000.nii.gz", "labelsTr/000.nii.gz")] * 2)
    with pytest.raises(DataError, match=r"000.nii.gz must have another name than .*000.nii.gz"):
        find_data(root)
    problems = []
    assert named(root, problems) == [("000", "000")]
    assert len(problems) == 1


@pytest.mark.parametrize("layout", ["acdc", "mmwhs", "promise12"])
def test_two_files_of_one_image(tmp_path, layout):
    root = make(tmp_path, layout)
    path = find_data(root).scans[0].image
    other = path.with_name(path.name.removesuffix(".gz") if path.suffix == ".gz" else "Case00.mha")
    other.write_bytes(b"another")
    with pytest.raises(DataError, match=rf"must hold one file of .*{other.name}"):
        find_data(root)


# the masks of each layout, and files of its folders without labels
MASKS = {
    "acdc": "training/p1/p1_frame09_gt.nii.gz",
    "promise12": "training_data/Case00_segmentation.mhd",
    "mmwhs": "mr_train/mr_train_1001_label.nii.gz",
    "msd": "labelsTr/a.nii.gz",
    "mnms": "Training/Labeled/X/X_sa_gt.nii.gz",
    "folder": "labels/a.nii",
}
MORE = {
    "acdc": [
        f"testing/p2/{name}" for name in ("Info.cfg", "p2_frame01.nii.gz", "p2_frame09.nii.gz")
    ],
    "promise12": ["test_data/Case01.mhd"],
    "mmwhs": ["mr_test/mr_test_2001_image.nii.gz"],
    "msd": ["imagesTs/b_0000.nii.gz", "imagesTs/b_0001.nii.gz"],
    "mnms": ["Training/Unlabeled/Y/Y_sa.nii.gz"],
}


@pytest.mark.parametrize("layout", MASKS)
def test_a_scan_without_labels(tmp_path, layout):
    root = make(tmp_path, layout)
    before = find_data(root).scans
    assert all(scan.mask is not None for scan in before)
    path = root / MASKS[layout]
    path.rename(path.with_name("kept"))
    after = find_data(root, layout=layout).scans
    assert [scan.mask is None for scan in after] == [scan.mask == path for scan in before]
    assert [replace(scan, mask=None) for scan in after] == [replace(s, mask=None) for s in before]


def test_hdf5_without_labels(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "data").mkdir()
    for number in (1, 2):
        with h5py.File(tmp_path / "data" / f"p1_frame0{number}.h5", "w") as file:
            file["image"] = np.zeros((2, 3, 4))
            if number == 1:
                file["label"] = np.zeros((2, 3, 4), np.uint8)
    first, second = find_data(tmp_path).scans
    assert (first.mask, second.mask) == (first.image, None)


@pytest.mark.parametrize("layout", MORE)
def test_folders_without_labels_are_asked_for(tmp_path, layout):
    root = make(tmp_path, layout)
    known = find_data(root).scans
    for name in MORE[layout]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TEXTS.get(path.name, ""))
    if layout == "mnms":
        table = root / "M&Ms_Dataset_information.csv"
        table.write_text(TEXTS[table.name] + "Y,0,9\n")
    assert find_data(root).scans == known
    scans = find_data(root, choice=Choice(unlabelled_folders=True)).scans
    more = [scan for scan in scans if scan not in known]
    assert len(more) == (2 if layout in ("acdc", "mnms") else 1)
    assert all(scan.mask is None and scan.image.exists() for scan in more)
    assert scans == sorted([*known, *more], key=lambda scan: scan.name)


def test_images_of_nnunet_without_labels(tmp_path):
    root = make(tmp_path, "msd")
    for name in ("b_0000", "b_0001", "c_0001"):
        (root / "imagesTr" / f"{name}.nii.gz").touch()
    problems = []
    scans = find_data(root, problems=problems).scans
    assert [(scan.name, scan.mask is None) for scan in scans] == [("a", False), ("b", True)]
    (problem,) = problems
    assert "imagesTr/c_0000.nii.gz must exist" in problem


def test_entry_of_the_decathlon_without_labels(tmp_path):
    root = make(tmp_path, "msd")
    fields = json.loads((root / "dataset.json").read_text())
    training = [{"image": "imagesTr/a_0000.nii.gz"}]
    (root / "dataset.json").write_text(json.dumps({**fields, "training": training}))
    (scan,) = find_data(root).scans
    assert (scan.name, scan.mask) == ("a", None)


def test_own_data(tmp_path):
    root = make(tmp_path, "folder")
    for name in ("images/p7/x.mha", "images/p7/y.nii", "labels/p7/y.nii.gz", "images/._b.nii"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    found = find_data(root)
    assert found.class_names == ("background", "liver")
    assert [(s.name, s.patient, s.mask and s.mask.name) for s in found.scans] == [
        ("a", "a", "a.nii"),
        ("p7_x", "p7", None),
        ("p7_y", "p7", "y.nii.gz"),
    ]
    (tmp_path / "table.csv").write_text("scan,patient,age\na,p7,61\n")
    with_table = find_data(root, tmp_path / "table.csv").scans
    assert {scan.patient for scan in with_table} == {"p7"}
    assert with_table[0].meta == {"age": "61"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda r: (r / "classes.txt").unlink(),
            r"classes\.txt must name the classes of the labels",
        ),
        (lambda r: (r / "classes.txt").write_text("a\na\n"), "two or more lines, all different"),
        (lambda r: (r / "images" / "a.nii.gz").unlink(), r"images/a must exist .* alone"),
        (lambda r: (r / "labels" / "a.nii.gz").touch(), r"hold one file of a, got a\.nii and a"),
    ],
)
def test_own_data_that_is_incomplete(tmp_path, spoil, message):
    root = make(tmp_path, "folder")
    spoil(root)
    with pytest.raises(DataError, match=message):
        find_data(root)


def test_images_alone(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.nii.gz").touch()
    found = find_data(tmp_path)
    assert found.class_names == ("background",)
    assert [scan.mask for scan in found.scans] == [None]
