"""Label efficiency: Dice over the number of labelled scans, for each arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from spcl_fast.segmentation.report import figures
from spcl_fast.segmentation.report.compare import SCRATCH
from spcl_fast.segmentation.report.figures import Picture
from spcl_fast.segmentation.report.reproduction_record import count_order
from spcl_fast.segmentation.report.runs import RunRecord

ALL = "all"
MAX_ARMS = 8
DODGE = 0.07  # between arms, in units of the distance of two counts
CAPTION = (
    "Mean 3-D Dice on the test scans over the number of labelled scans. A pale dot is a run, a "
    "line joins the means of an arm, and its band is one standard deviation if there are two or "
    "more runs; arms are shifted slightly so that dots do not cover each other."
)

Values = Mapping[str, Sequence[float]]


def labelled_count(run: RunRecord) -> str:
    """Return the number of labelled scans of an evaluated run, "all" if that is all there are."""
    count = len(run.labelled_scans)
    return ALL if count and count == run.scores.num_training_scans else str(count)


def efficiency_picture(by_arm: Mapping[str, Sequence[RunRecord]]) -> Picture | None:
    """Draw Dice over the number of labelled scans.

    Args:
        by_arm: Evaluated runs by arm.

    Returns:
        The picture, or None if there is no evaluated run.
    """
    values: dict[str, dict[str, list[float]]] = {}
    for name, runs in by_arm.items():
        for run in runs:
            curve = values.setdefault(name, {})
            curve.setdefault(labelled_count(run), []).append(run.scores.dice_mean)
    if not values:
        return None
    shown, left_out = _most_informative(values)
    counts = sorted({c for curve in shown.values() for c in curve}, key=count_order)
    figure, axes = figures.panels(1, 1, width=9.0 if len(counts) > 1 else 5.6, height=4.6)
    ax = axes[0][0]
    colours = figures.arm_colours(list(shown), SCRATCH)
    for index, (name, curve) in enumerate(shown.items()):
        offset = (index - (len(shown) - 1) / 2) * DODGE
        draw_curve(ax, curve, counts, colours[name], offset=offset, label=name)
    style_counts(ax, counts, "mean 3-D Dice")
    caption = CAPTION + _full_supervision(ax, shown, counts)
    if left_out:
        caption += f" {left_out} arms with fewer counts or runs are in the table only."
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return Picture("Label efficiency", caption, figures.to_png(figure))


def draw_curve(
    ax: Axes,
    curve: Values,
    counts: Sequence[str],
    colour: str,
    *,
    offset: float = 0.0,
    label: str | None = None,
    **style: Any,
) -> None:
    """Draw runs as dots, their means as a line and one standard deviation as a band.

    Args:
        ax: Where; count k is at x = k.
        curve: Values by count.
        counts: Counts in the order of the axis.
        colour: Of everything.
        offset: Added to x.
        label: For a legend.
        style: Of the line.
    """
    places = [(k, np.asarray(curve[c], dtype=float)) for k, c in enumerate(counts) if curve.get(c)]
    x = np.array([k + offset for k, _ in places])
    mean = np.array([values.mean() for _, values in places])
    spread = np.array([v.std(ddof=1) if len(v) > 1 else 0.0 for _, v in places])
    for k, values in places:
        ax.scatter([k + offset] * len(values), values, color=colour, s=16, alpha=0.4, lw=0)
    ax.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.13, lw=0)
    ax.vlines(x, mean - spread, mean + spread, color=colour, lw=1.2, alpha=0.7)
    ax.plot(x, mean, **{"color": colour, "marker": "o", "ms": 6, "lw": 2, "label": label, **style})


def style_counts(ax: Axes, counts: Sequence[str], ylabel: str, title: str = "") -> None:
    """Give an axes of label-efficiency curves its ticks and titles."""
    figures.style_curves(ax, title, xlabel="labelled scans")
    ax.set_xticks(range(len(counts)), counts)
    ax.set_xlim(-0.5, len(counts) - 0.5)
    ax.set_ylabel(ylabel, fontsize=9, color=figures.FAINT)


def _full_supervision(ax: Axes, shown: Mapping[str, Values], counts: Sequence[str]) -> str:
    """Draw the level with all training scans labelled; return a sentence about it."""
    if ALL not in counts:
        return " No run has all training scans labelled, so there is no line of full supervision."
    name = SCRATCH if shown.get(SCRATCH, {}).get(ALL) else next(n for n in shown if ALL in shown[n])
    level = float(np.mean(shown[name][ALL]))
    ax.axhline(level, color=figures.INK, lw=1.0, ls=(0, (5, 3)))
    ax.annotate(
        f"all training scans labelled, {name}: {level:.3f}",
        (0.01, level),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=9,
        color=figures.INK,
    )
    return f" The dashed line is {name} with all training scans labelled."


def _most_informative(values: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return scratch and the arms with the most counts and runs, and how many are left out."""
    order = sorted(
        values,
        key=lambda name: (
            name != SCRATCH,
            -len(values[name]),
            -sum(map(len, values[name].values())),
        ),
    )
    kept = set(order[:MAX_ARMS])
    return {name: curve for name, curve in values.items() if name in kept}, len(order[MAX_ARMS:])
