"""The layouts of the Decathlon and of nnU-Net: both dataset.json dialects, channels, junk files."""

import json

import nibabel
import numpy as np
import pytest

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.find import find_data
from spcl_fast.segmentation.data.inspect import inspect
from spcl_fast.segmentation.data.inspection_text import render
from spcl_fast.segmentation.data.layouts.layout import Choice
from spcl_fast.segmentation.data.layouts.msd import LAYOUT
from spcl_fast.segmentation.data.scan import IGNORED
from spcl_fast.segmentation.data.volume import read_scan

SHAPE = (6, 5, 4)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.25, 3.0, 1])), path)


def describe(root, **fields):
    root.mkdir(exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(fields))


def make_msd(root, cases=("prostate_00", "prostate_01"), num_channels=2):
    rng = np.random.default_rng(0)
    for case in cases:
        shape = SHAPE if num_channels == 1 else (*SHAPE, num_channels)
        save(root / "imagesTr" / f"{case}.nii.gz", rng.normal(size=shape).astype(np.float32))
        mask = rng.integers(0, 3, SHAPE).astype(np.uint8)
        save(root / "labelsTr" / f"{case}.nii.gz", mask)
        for folder in ("imagesTr", "labelsTr"):
            (root / folder / f"._{case}.nii.gz").write_bytes(b"junk")
    pairs = [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in cases]
    describe(
        root,
        modality={str(k): "MRI" for k in range(num_channels)},
        labels={"0": "background", "2": "TZ", "1": "PZ"},
        training=pairs,
        test=["./imagesTs/prostate_02.nii.gz"],
    )


# 3-D files, and 4-D files whose first channel is the image
@pytest.mark.parametrize("num_channels", [1, 2])
def test_decathlon(tmp_path, num_channels):
    make_msd(tmp_path, num_channels=num_channels)
    assert LAYOUT.recognises(tmp_path)
    assert LAYOUT.class_names(tmp_path) == ("background", "PZ", "TZ")
    scans = find_data(tmp_path, layout="msd").scans
    assert [(s.name, s.patient, s.phase) for s in scans] == [
        ("prostate_00", "prostate_00", None),
        ("prostate_01", "prostate_01", None),
    ]
    volume = read_scan(scans[1])
    array = np.asarray(nibabel.load(scans[1].image).dataobj)
    first = array if num_channels == 1 else array[..., 0]
    np.testing.assert_array_equal(volume.image, first.T)
    assert set(np.unique(volume.mask)) == {0, 1, 2}
    assert volume.spacing_mm == (3.0, 1.25, 1.0)


# with and without the list that nnU-Net's first version wrote
@pytest.mark.parametrize("has_list", [False, True])
def test_nnunet(tmp_path, has_list):
    fields = {"training": []} if has_list else {}
    for number, case in enumerate(("patient001_frame01", "patient001_frame12", "b")):
        for channel in ("0000", "0001"):
            value = np.full(SHAPE, 10 * number + int(channel), np.int16)
            save(tmp_path / "imagesTr" / f"{case}_{channel}.nii.gz", value)
        save(tmp_path / "labelsTr" / f"{case}.nii.gz", np.ones(SHAPE, np.uint8))
        if has_list:
            pair = {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
            fields["training"].append(pair)
    (tmp_path / "labelsTr" / "._b.nii.gz").write_bytes(b"junk")
    describe(
        tmp_path,
        channel_names={"0": "cine", "1": "other"},
        labels={"background": 0, "RV": 1, "MYO": 2},
        file_ending=".nii.gz",
        numTraining=3,
        **fields,
    )
    scans = find_data(tmp_path, layout="msd").scans
    assert [(s.name, s.patient) for s in scans] == [
        ("b", "b"),
        ("patient001_frame01", "patient001"),
        ("patient001_frame12", "patient001"),
    ]
    assert scans[0].class_names == LAYOUT.class_names(tmp_path) == ("background", "RV", "MYO")
    assert read_scan(scans[0]).image.max() == 20
    assert read_scan(scans[2]).image.max() == 10


# each rule for dataset.json broken once
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "labels numbered 0, 1"),
        ({"labels": {}}, "labels numbered 0, 1"),
        ({"labels": {"0": "background", "2": "PZ"}}, "labels numbered 0, 1"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, "labels numbered 0, 1"),
        ({"labels": ["background", "PZ"]}, "labels numbered 0, 1"),
        ({"labels": {"background": 0, "PZ": 1, "ignore": 1}}, "labels numbered 0, 1"),
        ({"labels": {"0": "background", "1": "PZ", "2": "PZ"}}, "labels numbered 0, 1"),
        ({"labels": {"0": "a"}, "training": [{"label": "x"}]}, "each training case with its image"),
        ({"labels": {"0": "a"}, "training": ["x"]}, "each training case with its image"),
        ({"labels": {"0": "a"}, "training": 3}, "each training case with its image"),
        ({"labels": {"0": "a"}, "modality": "MRI"}, "map channel numbers to names, got 'MRI'"),
    ],
)
def test_bad_descriptions(tmp_path, fields, message):
    describe(tmp_path, **fields)
    with pytest.raises(DataError, match=message) as error:
        find_data(tmp_path, layout="msd")
    assert str(tmp_path / "dataset.json") in str(error.value)


# no JSON at all, and JSON that is no object
@pytest.mark.parametrize(
    ("text", "message"), [("{", "must be a readable JSON file"), ("[]", "must hold a JSON object")]
)
def test_bad_json(tmp_path, text, message):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=message):
        LAYOUT.class_names(tmp_path)


# one file of a pair away
@pytest.mark.parametrize("folder", ["imagesTr", "labelsTr"])
def test_incomplete_case(tmp_path, folder):
    make_msd(tmp_path)
    (tmp_path / folder / "prostate_00.nii.gz").unlink()
    with pytest.raises(DataError, match=rf"{folder}/prostate_00.nii.gz must exist"):
        find_data(tmp_path, layout="msd")
    bad, good = LAYOUT.find(tmp_path)
    assert isinstance(bad, DataError)
    assert good[0].name == "prostate_01"


def test_another_channel(tmp_path):
    make_msd(tmp_path)
    scan = find_data(tmp_path, layout="msd", choice=Choice(channel=1)).scans[1]
    array = np.asarray(nibabel.load(scan.image).dataobj)
    np.testing.assert_array_equal(read_scan(scan).image, array[..., 1].T)
    assert (scan.frame, scan.channels) == (1, "axis")
    with pytest.raises(DataError, match=r"channel must be one of .*, 0 to 1, got 2"):
        find_data(tmp_path, layout="msd", choice=Choice(channel=2))


def test_another_channel_in_files(tmp_path):
    for number in (0, 1):
        save(tmp_path / "imagesTr" / f"a_000{number}.nii.gz", np.full(SHAPE, number, np.int16))
    save(tmp_path / "labelsTr" / "a.nii.gz", np.ones(SHAPE, np.uint8))
    names = {"0": "T2", "1": "ADC"}
    describe(tmp_path, channel_names=names, labels={"background": 0, "PZ": 1})
    (scan,) = find_data(tmp_path, choice=Choice(channel=1)).scans
    assert (scan.name, scan.frame, scan.channels) == ("a", None, "files")
    assert read_scan(scan).image.min() == 1
    (tmp_path / "imagesTr" / "a_0001.nii.gz").unlink()
    with pytest.raises(DataError, match=r"a_0001\.nii\.gz must exist"):
        find_data(tmp_path, choice=Choice(channel=1))


@pytest.mark.parametrize(
    "labels",  # nnU-Net's way, the Decathlon's, and a value that is far from the others
    [
        {"background": 0, "PZ": 1, "TZ": 2, "ignore": 3},
        {"0": "background", "1": "PZ", "2": "TZ", "3": "Ignore"},
        {"background": 0, "PZ": 1, "TZ": 2, "ignore": 200},
    ],
)
def test_what_is_not_annotated(tmp_path, labels):
    make_msd(tmp_path, num_channels=1)
    value = int(labels.get("ignore", 3))
    mask = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 3
    mask[:2] = value
    save(tmp_path / "labelsTr" / "prostate_00.nii.gz", mask.astype(np.uint8))
    fields = json.loads((tmp_path / "dataset.json").read_text())
    describe(tmp_path, **fields | {"labels": labels})
    scan = find_data(tmp_path).scans[0]
    assert scan.class_names == LAYOUT.class_names(tmp_path) == ("background", "PZ", "TZ")
    np.testing.assert_array_equal(read_scan(scan).mask.T, np.where(mask == value, IGNORED, mask))
    found = inspect(tmp_path)
    assert found.problems == []
    assert found.ignored_voxels == 2 * SHAPE[1] * SHAPE[2]
    assert sum(found.label_voxels.values()) == 2 * np.prod(SHAPE) - found.ignored_voxels
    assert any("not annotated" in line for line in render(found))


def test_a_value_beyond_the_classes_is_refused_beside_ignore(tmp_path):
    make_msd(tmp_path, num_channels=1)
    fields = json.loads((tmp_path / "dataset.json").read_text())
    labels = {"background": 0, "PZ": 1, "ignore": 2}
    describe(tmp_path, **fields | {"labels": labels})
    save(tmp_path / "labelsTr" / "prostate_00.nii.gz", np.full(SHAPE, 3, np.uint8))
    with pytest.raises(DataError, match=r"must hold labels in 0, 1, 2, got 3"):
        read_scan(find_data(tmp_path).scans[0])
    save(tmp_path / "labelsTr" / "prostate_00.nii.gz", np.full(SHAPE, IGNORED, np.uint8))
    with pytest.raises(DataError, match=r"must hold labels in 0, 1, 2, got 255"):
        read_scan(find_data(tmp_path).scans[0])


def test_real_hippocampus(real_data):
    root = real_data / "Task04_Hippocampus"
    assert LAYOUT.class_names(root) == ("background", "Anterior", "Posterior")
    scans = find_data(root, layout="msd").scans
    assert len(scans) == 260
    volume = read_scan(scans[0])
    assert volume.spacing_mm == (1.0, 1.0, 1.0)
    assert set(np.unique(volume.mask)) == {0, 1, 2}
