"""Both stages on other layouts than ACDC's: classes, axes and frames reach the evaluation."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch

from spcl_fast.segmentation.commands.evaluate import EvaluateConfig, evaluate
from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.metaimage import write_metaimage
from spcl_fast.segmentation.data.scan import SHORT_AXIS_CLASSES, Scan
from spcl_fast.segmentation.data.volume import read_scan
from spcl_fast.segmentation.evaluate.metrics import dice_per_class
from spcl_fast.segmentation.evaluate.scans import check_classes, evaluate_scans, slice_dice
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.finetune.loop import finetune
from spcl_fast.segmentation.runs.config import dump_config, stage_config
from spcl_fast.segmentation.runs.dataset import all_scans, data_set, split_scans, training_slices


@pytest.fixture
def prostate(tmp_path):
    """Five small cases in PROMISE12's layout: a bright box, labelled."""
    folder = tmp_path / "prostate" / "training_data"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(5):
        image = rng.integers(0, 99, (6, 20, 20)).astype(np.int16)
        mask = np.zeros(image.shape, np.int8)
        mask[1:5, 6:14, 6:14] = 1
        image[mask == 1] += 400
        write_metaimage(folder / f"Case0{number}.mhd", image, (3.6, 6.0, 6.0))
        write_metaimage(folder / f"Case0{number}_segmentation.mhd", mask, (3.6, 6.0, 6.0))
    return folder.parent


@pytest.fixture
def config(finetune_config, prostate, tmp_path):
    data = replace(finetune_config.data, root=prostate, csv=None, cache=tmp_path / "cache")
    return replace(finetune_config, data=data, model=replace(finetune_config.model, num_classes=2))


def test_finetune_and_evaluate(config, prostate):
    result = finetune(config)
    assert result.classes == ("prostate",)
    assert json.loads((config.out / "evaluation.json").read_text()) == result.to_json()
    assert set(result.scans) == {scan.name for scan in split_scans(config.data).test}
    other = evaluate(EvaluateConfig(config.out, root=prostate, layout="promise12"))
    assert len(other.scans) == 5
    assert list(other.dice) == ["prostate"]


def test_layout_is_part_of_the_configuration(config, tmp_path):
    assert [len(scans) for scans in split_scans(config.data)] == [2, 1, 2]
    assert data_set(config.data).layout == "promise12"
    assert data_set(config.data).scans == all_scans(config.data)
    named = replace(config, data=replace(config.data, layout="acdc"))
    with pytest.raises(DataError, match="scans in layout acdc, got none"):
        all_scans(named.data)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(named, "finetune", "a"))
    assert stage_config(FinetuneConfig, "finetune", path).data.layout == "acdc"


def test_the_model_must_have_the_classes_of_the_data(config):
    scans = all_scans(config.data)
    assert check_classes(scans, 2) == ("background", "prostate")
    message = r"num_classes must be 2, the classes of the data set \(background, prostate\), got 4"
    with pytest.raises(DataError, match=message):
        check_classes(scans, 4)
    with pytest.raises(DataError, match="must have the same classes"):
        check_classes([scans[0], replace(scans[1], class_names=SHORT_AXIS_CLASSES)], 2)
    assert check_classes([], 3) == ("0", "1", "2")


class Bright(torch.nn.Module):
    """Two classes: 1 where the image is bright."""

    def __init__(self):
        super().__init__()
        self.out = torch.nn.Conv2d(1, 2, 1)

    def forward(self, image):
        return torch.cat([0.5 - image, image - 0.5], 1)


def test_slice_dice_names_the_classes_of_the_data(config):
    slices = training_slices(config.data, all_scans(config.data))
    assert slice_dice(Bright(), slices)["prostate"] > 0.8


# a frame of a 4-D file, values that are no classes, and slices along the first axis
def test_frame_axis_and_classes_of_a_scan(tmp_path, config):
    masks = np.zeros((6, 20, 18, 2), np.int16)
    masks[1:5, 6:14, 5:13, 1] = 500
    masks[0, 0, 0, 1] = 7
    images = np.where(masks == 500, 300, 0).astype(np.int16)
    paths = tmp_path / "a.nii.gz", tmp_path / "a_gt.nii.gz"
    for path, array in zip(paths, (images, masks), strict=True):
        nibabel.save(nibabel.Nifti1Image(array, np.diag([9.0, 6.0, 6.0, 1.0])), path)
    names = ("background", "heart")
    scan = Scan("a", "a", None, *paths, {}, 1, 0, {0: 0, 500: 1, 7: 0}, names)
    result = evaluate_scans(Bright(), [scan], config.data.grid, tmp_path / "predictions")
    scores = result.scans["a"]
    assert scores.dice["heart"] > 0.85
    row = scores.to_json()
    assert (row["frame"], row["stack_axis"]) == (1, 0)
    assert row["classes"] == [[0, 0], [7, 0], [500, 1]]
    written = nibabel.load(tmp_path / scores.prediction)
    assert written.shape == (6, 20, 18)
    label = torch.from_numpy(np.asarray(written.dataobj).transpose(0, 2, 1).astype(np.int64))
    dice = dice_per_class(label, torch.from_numpy(read_scan(scan).mask), 2)
    assert scores.dice["heart"] == pytest.approx(dice[0])
