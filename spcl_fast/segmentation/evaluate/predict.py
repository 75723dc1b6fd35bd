"""Prediction: images in, NIfTI labels out on the original grid and affine."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from spcl_fast.atomic_file import atomic_file
from spcl_fast.segmentation.data import image_file
from spcl_fast.segmentation.data.arrays import AffineArray, LabelArray
from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.grid import Grid
from spcl_fast.segmentation.data.volume import stacked, write_labels
from spcl_fast.segmentation.evaluate.axes import Turning
from spcl_fast.segmentation.evaluate.cases import InputVolume
from spcl_fast.segmentation.evaluate.ensemble import Ensemble, largest_components
from spcl_fast.segmentation.evaluate.scans import segment_volume
from spcl_fast.segmentation.networks import UNet
from spcl_fast.segmentation.runs.progress import progress_bar, say


def segment_images(
    cases: Mapping[str, InputVolume],
    out: Path,
    model: UNet | Ensemble,
    grid: Grid,
    turning: Turning,
    *,
    largest: bool = False,
) -> list[dict[str, Any]]:
    """Write the labels of every image; a failure is reported and the others continue.

    Args:
        cases: The volumes by name, from `cases_of`.
        out: Existing folder for NAME_pred.nii.gz.
        model: Segmenter with 1 input channel.
        grid: The grid the model was trained on.
        turning: How the axes of the images are turned.
        largest: Keep the largest component of every class.

    Returns:
        A row per case: seconds, voxels and millilitres of each class, or the error.
    """
    rows: list[dict[str, Any]] = []
    with progress_bar("predict", len(cases)) as show:
        for step, (name, case) in enumerate(cases.items(), 1):
            try:
                label, row = _segment(case, model, grid, turning, largest=largest)
                write_labels(out_file(out, name), *label)
                rows.append({"case": name, **row})
            except Exception as error:  # one bad case must not stop the others
                message = _sentence(case.path, error)
                say(f"skipped: {message}")
                rows.append({"case": name, "error": message})
            show(step, name)
    return rows


def out_file(out: Path, case: str) -> Path:
    """Return the file in `out` with the labels of a case."""
    return out / f"{case}_pred.nii.gz"


def _segment(
    case: InputVolume, model: UNet | Ensemble, grid: Grid, turning: Turning, *, largest: bool
) -> tuple[tuple[LabelArray, AffineArray], dict[str, Any]]:
    """Return the labels of one volume with their affine, and its figures."""
    start = time.perf_counter()
    if case.error:
        raise DataError(case.error)
    array, geometry = image_file.load(case.path, case.frame)
    axes = turning.of(geometry)
    if axes.remark:
        say(f"{case.path.name}: {axes.remark}")
    turned = replace(geometry, spacing_mm=axes.spacing_mm(geometry))
    image, spacing_mm = stacked(axes.turned(array), turned, axes.stack_axis)
    label = segment_volume(model, torch.from_numpy(image), spacing_mm, grid)
    if largest:
        label = largest_components(label)
    back = axes.labels_back(label.numpy()), geometry.affine
    row: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 3)}
    voxels = torch.bincount(label.flatten(), minlength=model.out.out_channels).tolist()
    voxel_ml = math.prod(spacing_mm) / 1000.0  # 1000 cubic millimetres are a millilitre
    row |= {f"voxels_{k}": count for k, count in enumerate(voxels)}
    return back, row | {f"ml_{k}": round(count * voxel_ml, 3) for k, count in enumerate(voxels)}


def _sentence(path: Path, error: Exception) -> str:
    if isinstance(error, DataError):
        return str(error)  # names the file
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{path} could not be segmented: {' '.join(reason.split()) or type(error).__name__}"


def write_summary(path: Path, rows: Sequence[dict[str, Any]], num_classes: int) -> None:
    """Write the rows of `segment_images` as a CSV file."""
    counts = [f"{unit}_{k}" for unit in ("voxels", "ml") for k in range(num_classes)]
    with atomic_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["case", "seconds", *counts, "error"], restval="")
        table.writeheader()
        table.writerows(rows)
