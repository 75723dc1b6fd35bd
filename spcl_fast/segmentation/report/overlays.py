"""Contours of truth and prediction on the best, median and worst test scan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from spcl_fast.segmentation.data.scan import IGNORED, Scan
from spcl_fast.segmentation.data.volume import read_image, read_labels, read_scan
from spcl_fast.segmentation.report import figures
from spcl_fast.segmentation.report.compare import SCRATCH, common_scans
from spcl_fast.segmentation.report.figures import Picture
from spcl_fast.segmentation.report.runs import RunRecord

MAX_SLICES = 8
WORST = 3  # scans of the picture of the worst
PREDICTED: Any = (0, (2.2, 1.6))  # dashes
MARGIN = 0.35  # of the extent of the truth, on each side


@dataclass(frozen=True)
class Window:
    """The part of a volume that is drawn."""

    slices: list[int]
    rows: slice
    columns: slice
    aspect: float  # height of a voxel over its width
    low: float  # black
    high: float  # white


def overlay_picture(runs: Sequence[RunRecord], how: str) -> Picture | None:
    """Draw the best, median and worst scan, one row per run, base to apex.

    Args:
        runs: Evaluated runs with test scans in common.
        how: How the runs were chosen, for the caption.

    Returns:
        The picture, or None if the runs have no test scan in common.

    Raises:
        DataError: If a volume cannot be read.
    """
    chosen = _best_median_worst(runs)
    return Picture("Predictions", _overlay_caption(how), _draw(runs, chosen)) if chosen else None


def worst_picture(runs: Sequence[RunRecord], how: str) -> Picture | None:
    """Draw the scans with the lowest Dice of the last run, the worst first; as `overlay_picture`.

    Returns:
        The picture, or None if there are so few scans that `overlay_picture` shows them.
    """
    scores, last = runs[-1].scores.scans, runs[-1]
    names = [n for n in common_scans(runs) if not math.isnan(scores[n].dice_mean)]
    if len(names) <= 2 * WORST:
        return None
    names = sorted(names, key=lambda name: scores[name].dice_mean)[:WORST]
    chosen = [(f"{k} of the worst", name) for k, name in enumerate(names, 1)]
    caption = f"The {WORST} scans with the lowest mean Dice of {last.name}; the runs are {how}."
    return Picture("Worst scans", caption, _draw(runs, chosen))


def _draw(runs: Sequence[RunRecord], chosen: Sequence[tuple[str, str]]) -> bytes:
    """Draw scans, given as label and name, one row per run."""
    volumes = [(label, name, _read(runs, name)) for label, name in chosen]
    columns = max(len(window.slices) for _, _, (_, window) in volumes)
    num_rows = len(chosen) * len(runs)
    figure, axes = figures.panels(
        num_rows,
        1 + columns,
        width=1.75 + 1.3 * columns,
        height=1.36 * num_rows + 0.5,
        dark=True,
        width_ratios=[1.35] + [1.0] * columns,
    )
    for row in axes:
        for ax in row:
            ax.set_axis_off()
    for block, (label, name, (arrays, window)) in enumerate(volumes):
        for index, run in enumerate(runs):
            row = axes[block * len(runs) + index]
            _row_label(row[0], label, name, run)
            _draw_row(row[1:], arrays, run, window)
    _legend(figure, runs[0].scores.classes)
    return figures.to_png(figure)


def _overlay_caption(how: str) -> str:
    return (
        "Slices from base (left) to apex (right), evenly spaced if there are more than "
        f"{MAX_SLICES}, cropped around the ground truth (predictions far from it are not visible). "
        f"Scans are the best, median and worst by mean Dice over the rows; the runs are {how}."
    )


def _legend(figure: Figure, classes: Sequence[str]) -> None:
    handles = [
        *(Line2D([], [], color=figures.class_colour(n, i), label=n) for i, n in enumerate(classes)),
        Line2D([], [], color="white", lw=1.0, label="ground truth"),
        Line2D([], [], color="white", lw=1.3, ls=PREDICTED, label="prediction"),
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=10,
        labelcolor="white",
    )


def _best_median_worst(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    scores = [run.scores.scans for run in runs]
    scans = [n for n in common_scans(runs) if not any(math.isnan(s[n].dice_mean) for s in scores)]
    scans.sort(key=lambda name: float(np.mean([run.scores.scans[name].dice_mean for run in runs])))
    if len(scans) < 3:
        labels = ["worst", "best"] if len(scans) == 2 else ["only"]
        return list(zip(labels, scans, strict=False))[::-1]
    return [
        ("best", scans[-1]),
        ("median", scans[(len(scans) - 1) // 2]),
        ("worst", scans[0]),
    ]


def _path(run: RunRecord, scan: str, kind: Literal["image", "mask", "prediction"]) -> Path:
    """Return a file of a scan; a relative path starts at the run folder."""
    path: str | None = getattr(run.scores.scans[scan], kind)
    if path is None:
        raise ValueError(f"{run.name}: evaluation.json names no {kind} of {scan}")
    return run.folder / path


def read_scan_image(run: RunRecord, scan: str) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Return the image of a test scan, (S, H, W), and its spacing in mm.

    Raises:
        DataError: If it cannot be read.
        ValueError: If the evaluation names no image.
    """
    scores = run.scores.scans[scan]
    path = _path(run, scan, "image")
    image, spacing_mm, _ = read_image(path, frame=scores.frame, stack_axis=scores.stack_axis)
    return image, spacing_mm


def _read(runs: Sequence[RunRecord], scan: str) -> tuple[dict[str, np.ndarray], Window]:
    """Return image, mask and each run's prediction by name, and the part to draw."""
    volume = read_scan(_scan(runs[0], scan))
    image, spacing_mm = volume.image, volume.spacing_mm
    num_classes, axis = 1 + len(runs[0].scores.classes), runs[0].scores.scans[scan].stack_axis
    arrays: dict[str, np.ndarray] = {
        "image": image,
        "mask": np.where(volume.mask == IGNORED, 0, volume.mask),
    }
    for run in runs:
        path = _path(run, scan, "prediction")
        arrays[f"prediction {run.name}"] = read_labels(
            path, num_classes, stack_axis=axis, image=volume.geometry
        )
    count = min(MAX_SLICES, len(image))
    slices = np.linspace(0, len(image) - 1, count).round().astype(int).tolist()
    rows, columns = _surroundings(arrays["mask"], spacing_mm)
    low, high = (float(value) for value in np.percentile(image, (1, 99)))
    aspect = spacing_mm[1] / spacing_mm[2]
    return arrays, Window(slices, rows, columns, aspect, low, max(high, low + 1e-6))


def _scan(run: RunRecord, name: str) -> Scan:
    scores = run.scores.scans[name]
    return Scan(
        name=name,
        patient=scores.patient,
        phase=None,
        image=_path(run, name, "image"),
        mask=_path(run, name, "mask"),
        frame=scores.frame,
        stack_axis=scores.stack_axis,
        classes=scores.classes,
        class_names=("background", *run.scores.classes),
    )


def _surroundings(mask: np.ndarray, spacing_mm: Sequence[float]) -> tuple[slice, slice]:
    """Return a square (in mm) around the truth, or everything where there is none."""
    found = [np.flatnonzero(mask.any(axis=axes)) for axes in ((0, 2), (0, 1))]
    if not len(found[0]):
        return slice(0, mask.shape[1]), slice(0, mask.shape[2])
    sides = list(zip(found, spacing_mm[1:], mask.shape[1:], strict=True))
    half_mm = max((index[-1] - index[0] + 1) * d for index, d, _ in sides) * (0.5 + MARGIN)
    parts = []
    for index, d, size in sides:
        centre, half = (index[0] + index[-1]) / 2, half_mm / d
        parts.append(slice(max(0, int(centre - half)), min(size, int(centre + half) + 1)))
    return parts[0], parts[1]


def _draw_row(
    row: Sequence[Axes], arrays: dict[str, np.ndarray], run: RunRecord, window: Window
) -> None:
    for ax, z in zip(row, window.slices, strict=False):
        part = {key: array[z, window.rows, window.columns] for key, array in arrays.items()}
        ax.imshow(
            part["image"], cmap="gray", vmin=window.low, vmax=window.high, aspect=window.aspect
        )
        for index, name in enumerate(run.scores.classes):
            colour = figures.class_colour(name, index)
            _contour(ax, part["mask"] == index + 1, colour, "solid", 1.0)
            _contour(ax, part[f"prediction {run.name}"] == index + 1, colour, PREDICTED, 1.3)


def _contour(ax: Axes, region: np.ndarray, colour: str, style: Any, width: float) -> None:
    if region.any() and min(region.shape) > 1:
        # a rim of zeros closes contours that leave the crop
        padded = np.pad(region.astype(np.float32), 1)
        x, y = np.arange(-1, region.shape[1] + 1), np.arange(-1, region.shape[0] + 1)
        ax.contour(
            x, y, padded, levels=[0.5], colors=[colour], linestyles=[style], linewidths=width
        )
        ax.set_xlim(-0.5, region.shape[1] - 0.5)
        ax.set_ylim(region.shape[0] - 0.5, -0.5)


def _row_label(ax: Axes, label: str, scan: str, run: RunRecord) -> None:
    scores = run.scores.scans[scan]
    start = SCRATCH if run.scores.initialised_from is None else "pre-trained"
    known = {name: value for name, value in scores.dice.items() if not math.isnan(value)}
    by_class = "  ".join(f"{name} {value:.2f}" for name, value in known.items())
    lines = (
        (0.80, f"{label}: {scan}", 7.6, "#cbd2d9", "normal"),
        (0.55, start, 9.5, "white", "bold"),
        (0.33, f"Dice {scores.dice_mean:.3f}", 9.5, "white", "normal"),
        (0.15, by_class, 6.4, "#cbd2d9", "normal"),
    )
    for y, text, size, colour, weight in lines:
        ax.text(
            0.02, y, text, transform=ax.transAxes, fontsize=size, color=colour, fontweight=weight
        )
