"""Dice and HD95: cubes worked by hand, anisotropic voxels, empty masks, MONAI, messages."""

import math

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric, HausdorffDistanceMetric

from spcl_fast.segmentation.data.scan import IGNORED
from spcl_fast.segmentation.evaluate.metrics import (
    dice_per_class,
    hd95_per_class,
    scores_per_class,
)

ONE = (1.0, 1.0, 1.0)


def cube(z: int, y: int, x: int, side: int = 4, label: int = 1) -> np.ndarray:
    volume = np.zeros((12, 14, 16), dtype=np.uint8)
    volume[z : z + side, y : y + side, x : x + side] = label
    return volume


# a shift along each axis by each distance up to no overlap at all
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shift", [0, 1, 3, 5])
def test_shifted_cube(axis, shift):
    start = [2, 2, 2]
    mask = cube(*start)
    start[axis] += shift
    prediction = cube(*start)
    overlap = max(4 - shift, 0)
    assert dice_per_class(prediction, mask, 2) == pytest.approx([overlap / 4])
    spacing = (8.0, 1.5, 0.5)
    # more than 5 % of the surface is the face that lies `shift` voxels out, and no point is further
    assert hd95_per_class(prediction, mask, spacing, 2) == pytest.approx([shift * spacing[axis]])


def test_two_voxels():
    """One voxel each: the distance is that between them, (1, 2, 3) voxels of (10, 2, 1) mm."""
    mask, prediction = cube(3, 3, 3, side=1), cube(4, 5, 6, side=1)
    assert hd95_per_class(prediction, mask, (10, 2.0, 1), 2) == pytest.approx(
        [math.sqrt(10**2 + 4**2 + 3**2)]
    )


def test_percentile_forgives_one_far_voxel():
    mask = cube(2, 2, 2, side=8)
    prediction = mask.copy()
    prediction[11, 13, 15] = 1
    assert hd95_per_class(prediction, mask, (1.0, 1.0, 1.0), 2) == [0.0]
    assert dice_per_class(prediction, mask, 2) == pytest.approx([2 * 512 / (512 + 513)])


def test_classes_are_apart_and_in_order():
    mask = cube(0, 0, 0) + cube(6, 6, 6, label=2)
    prediction = cube(0, 0, 0) + cube(6, 6, 8, label=2)
    assert dice_per_class(prediction, mask, 4) == pytest.approx([1.0, 0.5, 1.0])
    assert hd95_per_class(prediction, mask, (1.0, 1.0, 2.0), 4) == pytest.approx([0.0, 4.0, 0.0])


def test_empty_masks():
    full, empty = cube(2, 2, 2), cube(0, 0, 0, side=0)
    diagonal = math.sqrt((12 * 10.0) ** 2 + (14 * 1.5) ** 2 + (16 * 2.0) ** 2)
    spacing = (10.0, 1.5, 2.0)
    assert dice_per_class(empty, empty, 2) == [1.0]
    assert hd95_per_class(empty, empty, spacing, 2) == [0.0]
    for prediction, mask in ((full, empty), (empty, full)):
        assert dice_per_class(prediction, mask, 2) == [0.0]
        assert hd95_per_class(prediction, mask, spacing, 2) == pytest.approx([diagonal])


def test_agrees_with_monai_metrics():
    rng = np.random.default_rng(0)
    prediction, mask = rng.integers(0, 3, (2, 6, 12, 10))
    spacing = (5.0, 1.25, 1.5)
    onehot = [
        torch.nn.functional.one_hot(torch.from_numpy(v), 3).movedim(-1, 0)[None].float()
        for v in (prediction, mask)
    ]
    dice = DiceMetric(include_background=False)(*onehot)[0].tolist()
    hd95 = HausdorffDistanceMetric(include_background=False, percentile=95)(
        *onehot, spacing=list(spacing)
    )[0].tolist()
    assert dice_per_class(prediction, mask, 3) == pytest.approx(dice)
    assert hd95_per_class(prediction, mask, spacing, 3) == pytest.approx(hd95)


def test_tensors_and_arrays_of_any_integer():
    mask, prediction = cube(2, 2, 2), cube(3, 2, 2)
    expected = dice_per_class(prediction, mask, 2)
    assert dice_per_class(torch.from_numpy(prediction), mask.astype(np.int64), 2) == expected
    assert dice_per_class(prediction.astype(bool), torch.from_numpy(mask).int(), 2) == expected


def test_messages():
    mask = cube(2, 2, 2)
    with pytest.raises(TypeError, match=r"prediction must hold integers, got torch.float32"):
        dice_per_class(mask.astype(np.float32), mask, 2)
    with pytest.raises(ValueError, match=r"mask must hold labels in \[0, 2\), got labels from 0"):
        dice_per_class(mask, 3 * mask, 2)
    with pytest.raises(ValueError, match="prediction and mask must have one shape"):
        dice_per_class(mask, mask[1:], 2)
    with pytest.raises(ValueError, match=r"prediction must be a \(S, H, W\) volume"):
        dice_per_class(mask[0], mask[0], 2)
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        dice_per_class(mask, mask, 1)
    for spacing in ((1.0, 1.0), (1.0, 0.0, 1.0), (1.0, math.nan, 1.0)):
        with pytest.raises(ValueError, match="spacing_mm must be three positive numbers"):
            hd95_per_class(mask, mask, spacing, 2)


def test_voxels_that_nobody_annotated():
    mask, prediction = cube(2, 2, 2), cube(2, 2, 3)
    (dice,), (hd95,) = dice_per_class(prediction, mask, 2), hd95_per_class(prediction, mask, ONE, 2)
    assert (dice, hd95) == (0.75, 1.0)
    mask[:, :, 6] = IGNORED  # the only column where the prediction is too much
    assert dice_per_class(prediction, mask, 2) == [pytest.approx(2 * 48 / (64 + 48))]
    mask[:, :, 2] = IGNORED  # and the one where it is too little
    assert dice_per_class(prediction, mask, 2) == [1.0]
    assert hd95_per_class(prediction, mask, ONE, 2) == [0.0]


def test_a_class_that_the_mask_does_not_hold_is_not_scored():
    mask, prediction = cube(2, 2, 2, label=2), cube(2, 2, 2, label=2)
    prediction[0, 0, 0] = 3  # class 1 is in neither, class 3 in the prediction alone
    dice, hd95 = scores_per_class(prediction, mask, ONE, 4)
    assert (dice[1], hd95[1]) == (1.0, 0.0)
    assert all(math.isnan(values[k]) for values in (dice, hd95) for k in (0, 2))
    dice, hd95 = scores_per_class(prediction, mask, ONE, 4, absent="score")
    assert dice == [1.0, 1.0, 0.0]
    assert hd95 == [0.0, 0.0, math.hypot(12, 14, 16)]
    assert scores_per_class(0 * mask, mask, ONE, 4)[0][1] == 0.0  # missed, not absent
