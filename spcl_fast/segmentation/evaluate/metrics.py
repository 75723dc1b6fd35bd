"""Three-dimensional Dice and 95 % Hausdorff distance a class, computed by MONAI.

One policy for empty masks, stated here and nowhere else. `scores_per_class` takes a class without a
voxel in the mask for one that was not annotated: NaN, left out of every mean, as nobody can say
whether it was to be found. With ``absent="score"`` the mask is the truth, as in challenges:

    both empty          Dice 1, HD95 0 mm            nothing to find, nothing found
    exactly one empty   Dice 0, HD95 = the diagonal of the volume in mm, the largest error it allows

A class that is in the mask but was not found is scored so either way. Voxels that the mask does
not annotate (IGNORED) are background in both.
"""

from __future__ import annotations

import math
import warnings
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from spcl_fast.segmentation.data.scan import IGNORED

Labels = np.ndarray | Tensor
"""A volume of class numbers, (S, H, W), any integer or bool dtype."""
Absent: TypeAlias = Literal["nan", "score"]


def scores_per_class(
    prediction: Labels,
    mask: Labels,
    spacing_mm: tuple[float, float, float],
    num_classes: int,
    absent: Absent = "nan",
) -> tuple[list[float], list[float]]:
    """Return Dice and HD95 in mm of each foreground class, NaN for a class that is not scored.

    Args:
        prediction: (S, H, W) class numbers in [0, num_classes).
        mask: (S, H, W) ground truth, as prediction; IGNORED where nothing is annotated.
        spacing_mm: Size of a voxel (dz, dy, dx) in mm.
        num_classes: Classes K, the background (0) among them.
        absent: What becomes of a class without a voxel in the mask, see the module.

    Returns:
        Two lists of K - 1 values, class 1 first.

    Raises:
        TypeError, ValueError: As `dice_per_class` and `hd95_per_class`.
    """
    dice = dice_per_class(prediction, mask, num_classes)
    hd95 = hd95_per_class(prediction, mask, spacing_mm, num_classes)
    if absent == "score":
        return dice, hd95
    is_there = is_annotated(mask, num_classes)
    return _nan_unless(is_there, dice), _nan_unless(is_there, hd95)


def is_annotated(mask: Labels, num_classes: int) -> list[bool]:
    """Return whether each foreground class has a voxel in a mask."""
    labels = torch.as_tensor(mask)
    return [bool((labels == number).any()) for number in range(1, num_classes)]


def _nan_unless(flags: list[bool], values: list[float]) -> list[float]:
    return [value if flag else math.nan for flag, value in zip(flags, values, strict=True)]


def dice_per_class(prediction: Labels, mask: Labels, num_classes: int) -> list[float]:
    """Return the Dice coefficient of each foreground class over a whole volume.

    Dice = 2 |A and B| / (|A| + |B|), summed over all slices. Not differentiable.

    Args:
        prediction: (S, H, W) class numbers in [0, num_classes).
        mask: (S, H, W) ground truth, as prediction.
        num_classes: Classes K, the background (0) among them.

    Returns:
        K - 1 values in [0, 1], class 1 first; empty masks count, as with ``absent="score"``.

    Raises:
        TypeError: If a volume holds no integers.
        ValueError: If num_classes < 2, the shapes differ or are not 3-D, or a label is out of
            range.
    """
    from monai.metrics.meandice import compute_dice

    y_pred, y = _one_hot_pair(prediction, mask, num_classes)
    dice = compute_dice(y_pred, y, include_background=True, ignore_empty=False)
    return [float(value) for value in dice[0]]


def hd95_per_class(
    prediction: Labels, mask: Labels, spacing_mm: tuple[float, float, float], num_classes: int
) -> list[float]:
    """Return the symmetric 95 % Hausdorff distance of each foreground class in mm.

    The larger of the two directed 95th percentiles between the surfaces in 3-D. Not differentiable.

    Args:
        prediction: (S, H, W) class numbers in [0, num_classes).
        mask: (S, H, W) ground truth, as prediction.
        spacing_mm: Size of a voxel (dz, dy, dx) in mm.
        num_classes: Classes K, the background (0) among them.

    Returns:
        K - 1 finite values in mm, class 1 first; empty masks count, as with ``absent="score"``.

    Raises:
        TypeError: If a volume holds no integers.
        ValueError: If spacing_mm is not three positive numbers, num_classes < 2, the shapes differ
            or are not 3-D, or a label is out of range.
    """
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    # MONAI refuses a list that mixes int and float
    spacing = [float(value) for value in spacing_mm]
    if len(spacing) != 3 or not all(0 < value < math.inf for value in spacing):
        raise ValueError(f"spacing_mm must be three positive numbers, got {spacing_mm}")
    y_pred, y = _one_hot_pair(prediction, mask, num_classes)
    diagonal = math.hypot(*(n * d for n, d in zip(y.shape[2:], spacing, strict=True)))
    distances = []
    for k in range(num_classes - 1):
        found, true = bool(y_pred[0, k].any()), bool(y[0, k].any())
        if not (found and true):
            distances.append(diagonal if found or true else 0.0)
            continue
        with warnings.catch_warnings():
            # MONAI 1.6 warns of an argument that it passes to itself
            warnings.simplefilter("ignore", FutureWarning)
            distance = compute_hausdorff_distance(
                y_pred[:, k : k + 1],
                y[:, k : k + 1],
                include_background=True,
                percentile=95.0,
                spacing=spacing,
            )
        distances.append(float(distance))
    return distances


def _one_hot_pair(prediction: Labels, mask: Labels, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return both volumes as (1, K - 1, S, H, W) float32, the background left out."""
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")
    pair = []
    for name, volume in (("prediction", prediction), ("mask", mask)):
        labels = torch.as_tensor(volume)
        if labels.is_floating_point() or labels.is_complex():
            raise TypeError(f"{name} must hold integers, got {labels.dtype}")
        if labels.ndim != 3 or labels.numel() == 0:
            raise ValueError(f"{name} must be a (S, H, W) volume, got {tuple(labels.shape)}")
        labels = labels.to(torch.int64)
        if name == "mask":
            is_known = labels != IGNORED
            labels = torch.where(is_known, labels, 0)
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"{name} must hold labels in [0, {num_classes}), got labels from {low} to {high}"
            )
        pair.append(labels)
    if pair[0].shape != pair[1].shape:
        raise ValueError(
            "prediction and mask must have one shape, "
            f"got {tuple(pair[0].shape)} and {tuple(pair[1].shape)}"
        )
    pair[0] = torch.where(is_known, pair[0], 0)
    classes = torch.arange(1, num_classes, device=pair[0].device).view(-1, 1, 1, 1)
    y_pred, y = ((labels == classes).float().unsqueeze(0) for labels in pair)
    return y_pred, y
