"""Scores of every test scan: a table, and the scans of a single pair of runs as lines."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from spcl_fast.segmentation.report import figures
from spcl_fast.segmentation.report.compare import SCRATCH, RunPair, arm_name, common_scans
from spcl_fast.segmentation.report.figures import Picture
from spcl_fast.segmentation.report.runs import RunRecord
from spcl_fast.segmentation.report.tables import Table

PAIR_CAPTION = (
    "A line is a test scan, its mean 3-D Dice in the two runs; the thick line is the mean. Scans "
    "that fall lost by the change."
)


def case_table(runs: Sequence[RunRecord], how: str) -> Table | None:
    """Return a row for every scan that all runs evaluated, the lowest of the last run first.

    Args:
        runs: The runs whose predictions are drawn.
        how: How they were chosen, for the caption.
    """
    names = common_scans(runs)
    if not names:
        return None
    last = runs[-1].scores
    names.sort(key=lambda name: _low_first(last.scans[name].dice_mean))
    rows = []
    for name in names:
        scan = last.scans[name]
        dice = [_cell(run.scores.scans[name].dice_mean, 3) for run in runs]
        classes = [_cell(scan.dice.get(c, math.nan), 3) for c in last.classes]
        distances = [scan.hd95_mm.get(c, math.nan) for c in last.classes]
        known = [value for value in distances if not math.isnan(value)]
        hd95 = _cell(float(np.mean(known)) if known else math.nan, 1)
        rows.append([name, scan.patient, *dice, *classes, hd95])
    starts = [arm_name(run) for run in runs]
    header = ["Scan", "Patient", *(f"Dice {start}" for start in starts)]
    header += [*last.classes, "HD95, mm"]
    caption = (
        "Mean 3-D Dice of every test scan, the lowest first; classes and HD95 are of "
        f"{starts[-1]}. The runs are {how}. A dash is a class that the scan does not annotate."
    )
    return Table(caption, header, rows, num_text=2, title=f"All {len(rows)} test scans")


def pair_picture(pair: RunPair, name: str) -> Picture:
    """Draw the mean Dice of every test scan from scratch and of the other arm."""
    figure, axes = figures.panels(1, 1, width=4.6, height=3.8)
    ax = axes[0][0]
    runs = pair.scratch[0], pair.other[0]
    for scan in common_scans(runs):
        values = [run.scores.scans[scan].dice_mean for run in runs]
        ax.plot([0, 1], values, color=figures.SCRATCH_COLOUR, lw=1, marker="o", ms=3, alpha=0.7)
    means = [pair.dice_scratch, pair.dice_other]
    ax.plot([0, 1], means, color=figures.COLOURS[0], lw=3, marker="o", ms=7)
    figures.style_curves(ax, "", xlabel="")
    ax.set_xticks([0, 1], [SCRATCH, name], color=figures.INK)
    ax.set_xlim(-0.35, 1.35)
    ax.set_ylabel("mean 3-D Dice", fontsize=9, color=figures.FAINT)
    for x, value, side in ((0, means[0], "right"), (1, means[1], "left")):
        shift = -9 if side == "right" else 9
        ax.annotate(
            f"{value:.3f}",
            (x, value),
            xytext=(shift, 0),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=10,
            color=figures.COLOURS[0],
        )
    return Picture("Dice of every test scan", PAIR_CAPTION, figures.to_png(figure))


def _low_first(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _cell(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
