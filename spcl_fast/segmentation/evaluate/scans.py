"""Evaluation: 3-D Dice and HD95 of whole scans, on their original grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spcl_fast.segmentation.data.arrays import LabelArray, Spacing
from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.field_of_view import foreground_outside, is_foreground
from spcl_fast.segmentation.data.geometry import Geometry
from spcl_fast.segmentation.data.grid import Grid, from_grid, intensity_range, slices_to_grid
from spcl_fast.segmentation.data.scan import Scan
from spcl_fast.segmentation.data.slices import Slices
from spcl_fast.segmentation.data.volume import Volume, read_scan, stacked, write_labels
from spcl_fast.segmentation.evaluate.axes import Axes, Turning
from spcl_fast.segmentation.evaluate.ensemble import largest_components
from spcl_fast.segmentation.evaluate.metrics import (
    Absent,
    dice_per_class,
    is_annotated,
    scores_per_class,
)
from spcl_fast.segmentation.evaluate.record import Evaluation, ScanScores
from spcl_fast.segmentation.networks.evaluation_mode import evaluation_mode
from spcl_fast.segmentation.runs.progress import progress_bar, say

LEFT_OUT_SHARE = 0.01  # of the foreground, above which a grid is told not to fit
BATCH_SLICES = 8  # bounds the memory of a volume of many slices


def check_classes(scans: Sequence[Scan], num_classes: int) -> tuple[str, ...]:
    """Return the names of the classes of some scans, after comparing them with a model.

    Args:
        scans: Scans of one data set.
        num_classes: Classes of the model, the background among them.

    Returns:
        The names, the background first; numbers where there is no scan.

    Raises:
        DataError: The scans have another number of classes, or different classes.
    """
    sets = {scan.class_names for scan in scans} or {tuple(map(str, range(num_classes)))}
    if len(sets) != 1:
        raise DataError(f"scans must have the same classes, got {sorted(sets)}")
    names = sets.pop()
    if len(names) != num_classes:
        raise DataError(
            f"model.num_classes must be {len(names)}, the classes of the data set "
            f"({', '.join(names)}), got {num_classes}"
        )
    return names


def check_scans(
    scans: Sequence[Scan], absent: Absent = "nan", grid: Grid | None = None
) -> list[Geometry]:
    """Read scans before a training that ends in their evaluation.

    A warning tells how much of their foreground the grid leaves out, if that is more than 1 %.

    Returns:
        Where their images lie, with sentences about files that contradict themselves.

    Raises:
        DataError: A scan cannot be read, or cannot be evaluated, as in `evaluate_scans`.
    """
    geometries, outside, total = [], 0, 0
    for scan in scans:
        volume = _evaluable(scan, absent)
        geometries.append(volume.geometry)
        outside += 0 if grid is None else foreground_outside(volume, grid)
        total += int(is_foreground(torch.from_numpy(volume.mask)).sum())
    if outside > LEFT_OUT_SHARE * total:
        say(
            f"warning: {grid} leaves out {100 * outside / total:.1f} % of the foreground of the "
            "test scans; spcl-fast data inspect proposes a grid"
        )
    return geometries


def _evaluable(scan: Scan, absent: Absent) -> Volume:
    volume = read_scan(scan)
    if absent == "nan" and not any(is_annotated(volume.mask, len(scan.class_names))):
        raise DataError(
            f"{scan.mask} must hold labelled voxels, got background only; "
            "--absent-class score counts such masks."
        )
    return volume


@torch.no_grad()
def segment_volume(
    model: nn.Module, image: Tensor, spacing_mm: tuple[float, float, float], grid: Grid
) -> Tensor:
    """Return the label of every voxel on the volume's own grid.

    Args:
        model: Segmenter; evaluated in evaluation mode and left in the mode it was in.
        image: (S, H, W) float32, any intensity scale.
        spacing_mm: (dz, dy, dx).
        grid: The grid the model was trained on.

    Returns:
        (S, H, W) uint8.
    """
    device = next(model.parameters()).device
    height, width = image.shape[1:]
    labels = torch.empty(image.shape, dtype=torch.uint8)
    window = intensity_range(image)
    with evaluation_mode(model):
        for start in range(0, len(image), BATCH_SLICES):
            some = slice(start, start + BATCH_SLICES)
            slices = slices_to_grid(image[some], window, spacing_mm, grid)[:, None].to(device)
            logits = model(slices).float().cpu()
            labels[some] = from_grid(logits, (height, width), spacing_mm, grid).argmax(1)
    return labels


def evaluate_scans(
    model: nn.Module,
    scans: Sequence[Scan],
    grid: Grid,
    predictions: Path | None,
    absent: Absent = "nan",
    turning: Turning | None = None,
    *,
    largest: bool = False,
) -> Evaluation:
    """Return Dice and HD95 (mm) of every scan and foreground class.

    Args:
        model: Segmenter with 1 input channel.
        scans: Scans with masks.
        grid: The grid the model was trained on.
        predictions: Folder for a NIfTI file of each scan, or None.
        absent: What becomes of a class without a voxel in a mask, see `evaluate.metrics`.
        turning: How images get the axes of the training images; None takes them as stored.
        largest: Keep the largest component of every class.

    Raises:
        DataError: A scan cannot be read, the scans have not the number of classes of the model, or
            a mask holds no class at all unless ``absent="score"``.
    """
    num_classes = int(model.out.out_channels)  # type: ignore[union-attr, arg-type]
    names = check_classes(scans, num_classes)[1:]
    scores: dict[str, ScanScores] = {}
    with progress_bar("evaluate", len(scans)) as show:
        for step, scan in enumerate(scans, 1):
            axes = turning or Turning(stack_axis=scan.stack_axis)
            scores[scan.name] = _score(
                model, scan, grid, predictions, absent, axes, largest=largest
            )
            show(step, scan.name)
    return Evaluation(names, scores)


def _score(
    model: nn.Module,
    scan: Scan,
    grid: Grid,
    predictions: Path | None,
    absent: Absent,
    turning: Turning,
    *,
    largest: bool,
) -> ScanScores:
    """Segment a scan; return its scores, as `evaluate_scans`."""
    volume = _evaluable(scan, absent)
    axes = turning.of(volume.geometry)
    if axes.remark:
        say(f"{scan.name}: {axes.remark}")
    image, spacing_mm = _turned(volume.image, volume, scan, axes)
    truth, _ = _turned(volume.mask, volume, scan, axes)
    label = segment_volume(model, torch.from_numpy(image), spacing_mm, grid)
    if largest:
        label = largest_components(label)
    names = scan.class_names[1:]
    scores = scores_per_class(label, torch.from_numpy(truth), spacing_mm, 1 + len(names), absent)
    dice, hd95 = (dict(zip(names, values, strict=True)) for values in scores)
    return ScanScores(
        patient=scan.patient,
        dice=dice,
        hd95_mm=hd95,
        image=str(scan.image.resolve()),
        mask=None if scan.mask is None else str(scan.mask.resolve()),
        frame=scan.frame,
        stack_axis=axes.stored_stack_axis,
        classes=scan.classes,
        prediction=_write_prediction(predictions, scan, axes.labels_back(label.numpy()), volume),
    )


def _turned(
    array: NDArray[Any], volume: Volume, scan: Scan, axes: Axes
) -> tuple[NDArray[Any], Spacing]:
    """Return an array (S, H, W) of a volume with other axes, and its spacing (dz, dy, dx)."""
    stored = np.moveaxis(array.T, 2, scan.stack_axis)  # (x, y, z)
    geometry = replace(volume.geometry, spacing_mm=axes.spacing_mm(volume.geometry))
    return stacked(axes.turned(stored), geometry, axes.stack_axis)


def _write_prediction(
    folder: Path | None, scan: Scan, labels: LabelArray, volume: Volume
) -> str | None:
    """Write labels with the axes of the image; return the path below the run folder."""
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{scan.name}_pred.nii.gz"
    write_labels(path, labels, volume.affine)
    return f"{folder.name}/{path.name}"


@torch.no_grad()
def slice_dice(
    model: nn.Module, slices: Slices, batch_size: int = 64, absent: Absent = "nan"
) -> dict[str, float]:
    """Return the mean 3-D Dice of each class on the training grid, for the validation curve.

    A class that is in no mask is left out, with `absent` as in `evaluate_scans`.
    """
    batches = range(0, len(slices), batch_size)
    with evaluation_mode(model):
        label = torch.cat([model(slices.images[i : i + batch_size]).argmax(1) for i in batches])
    num_classes = int(model.out.out_channels)  # type: ignore[union-attr, arg-type]
    names = check_classes(slices.scans, num_classes)[1:]
    dice: dict[str, list[float]] = {}
    for scan in range(len(slices.scans)):
        rows = slices.scan == scan
        mask = slices.masks[rows].cpu()
        scores = dice_per_class(label[rows].cpu(), mask, num_classes)
        known = is_annotated(mask, num_classes)
        for name, score, is_known in zip(names, scores, known, strict=True):
            if is_known or absent == "score":
                dice.setdefault(name, []).append(score)
    return {name: float(np.mean(dice[name])) for name in names if name in dice}
