"""The self-paced weights of all pairs of slices of two scans, at four moments of the training."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from spcl_fast.segmentation.report import figures
from spcl_fast.segmentation.report.figures import Picture
from spcl_fast.segmentation.report.runs import RunRecord, load_arrays

NUM_MOMENTS = 4
NEEDED = ("weight", "similarity", "position", "scan", "positive", "gamma", "step")
BAR_LABELS = {"weight": "weight w", "similarity": "cosine similarity"}
NO_PAIR = "#dfe3e8"  # not a positive pair: there is no weight to show
SCAN_LINE: dict[str, Any] = {"color": "#d55e00", "lw": 1.8}
PARTITION_LINE: dict[str, Any] = {"color": "#0072b2", "lw": 0.8, "ls": (0, (3, 2))}
ORDER_CAPTION = (
    "Rows and columns are the slices of two scans, each sorted base to apex; orange lines separate "
    "the scans, dashed blue lines the labels within a scan. "
)
WEIGHTS_CAPTION = (
    "Top: weight of each positive pair, dark blue 0 (left out as too hard), yellow 1 (in full "
    "use); grey is not a positive pair; at the right the mask of the positive pairs. Bottom: "
    "similarity of the same slices, and a histogram of the last weights. Under a self-paced "
    "schedule the blocks should turn from blue to yellow, easy pairs first; in pairs that "
    "stay blue the embedding disagrees with the label."
)
NO_PAIRS_CAPTION = (
    "Every slice has a label of its own, so there are no positive pairs to weight here; red marks "
    "slices that the embedding finds similar nevertheless."
)


def weight_picture(run: RunRecord) -> Picture | None:
    """Draw weights above similarities, one column a moment, slices sorted base to apex.

    Args:
        run: A pre-training run.

    Returns:
        The picture; None if the run has no readable snapshot, which is then in `run.problems`.
    """
    moments = _moments(run)
    if not moments:
        return None
    has_pairs = any(moment["positive"].any() for moment in moments)
    keys = ("weight", "similarity") if has_pairs else ("similarity",)
    columns = len(moments) + has_pairs
    figure, axes = figures.panels(
        len(keys), columns, width=2.85 * columns + 0.8, height=3.0 * len(keys) + 0.2
    )
    if has_pairs:
        _mask(axes[0].pop(), axes[1].pop(), moments[-1])
    for row, key in zip(axes, keys, strict=True):
        images = [_matrix(ax, key, moment) for ax, moment in zip(row, moments, strict=True)]
        bar = figure.colorbar(images[0], ax=row, shrink=0.8, pad=0.01)
        bar.set_label(BAR_LABELS[key], fontsize=9, color=figures.INK)
        bar.ax.tick_params(labelsize=8, colors=figures.FAINT, length=0)
        bar.outline.set_visible(False)
    for ax, moment in zip(axes[0], moments, strict=True):
        ax.set_title(_moment_title(moment), fontsize=9.5, color=figures.INK)
    caption = ORDER_CAPTION + (WEIGHTS_CAPTION if has_pairs else NO_PAIRS_CAPTION)
    return Picture(f"Pair weights of {run.name}", caption, figures.to_png(figure))


def _moments(run: RunRecord) -> list[dict[str, np.ndarray]]:
    paths = sorted((run.folder / "weights").glob("step_*.npz"))
    if not paths:
        run.problems.append("It has no weights/step_*.npz, so its pair weights are not drawn.")
        return []
    keep = np.unique(np.linspace(0, len(paths) - 1, NUM_MOMENTS).round().astype(int))
    moments = []
    for index in keep:
        try:
            arrays = load_arrays(paths[index], NEEDED)
            n = len(arrays["scan"])
            if any(arrays[key].shape != (n, n) for key in ("weight", "similarity", "positive")):
                raise ValueError(f"{paths[index].name} holds matrices of another size than {n}")
        except ValueError as error:
            run.problems.append(f"weights/{error}, so this moment is not drawn.")
            continue
        moments.append(arrays)
    return moments


def _mask(top: Axes, bottom: Axes, moment: dict[str, np.ndarray]) -> None:
    """Draw the positive mask above a histogram of the weights of its pairs."""
    positive = moment["positive"].astype(bool)
    shown = {**moment, "mask": positive.astype(float)}
    _matrix(top, "mask", shown)
    top.set_title("positive mask\n(white: same label)", fontsize=9.5, color=figures.INK)
    bottom.hist(
        [moment["weight"][positive]], bins=np.linspace(0, 1, 21).tolist(), color=figures.COLOURS[0]
    )
    figures.style_curves(bottom, "", xlabel="number of pairs by weight, last step")
    bottom.set_box_aspect(1)


def _matrix(ax: Axes, key: str, moment: dict[str, np.ndarray]) -> AxesImage:
    positive = moment["positive"].astype(bool)
    n = len(positive)
    values, colours, low = moment[key], "RdBu_r", -1.0
    if key == "weight":
        values, colours, low = np.ma.masked_array(values, ~positive), "viridis", 0.0
    elif key == "mask":
        colours, low = "gray", 0.0
    ax.set_facecolor(NO_PAIR)
    image = ax.imshow(values, cmap=colours, vmin=low, vmax=1.0, interpolation="nearest")
    figures.style_image(ax)
    scan = moment["scan"]
    has_pairs = positive.any()
    for k in range(1, n):
        is_new_scan = scan[k] != scan[k - 1]
        if is_new_scan or (has_pairs and not positive[k, k - 1]):
            style = SCAN_LINE if is_new_scan else PARTITION_LINE
            ax.axhline(k - 0.5, **style)
            ax.axvline(k - 0.5, **style)
    scans = list(dict.fromkeys(scan.tolist()))
    centres = [float(np.flatnonzero(scan == s).mean()) for s in scans]
    names = [f"scan {number}" for number in range(1, len(scans) + 1)]
    ax.set_xticks(centres, names, fontsize=8, color=figures.FAINT)
    ax.set_yticks(centres, names, fontsize=8, color=figures.FAINT, rotation=90, va="center")
    ax.tick_params(length=0, pad=2)
    return image


def _moment_title(moment: dict[str, np.ndarray]) -> str:
    positive = moment["positive"].astype(bool)
    gamma = float(moment["gamma"])
    pace = f"gamma {gamma:.3g}" if np.isfinite(gamma) else "no pace"
    mean = f"mean w {moment['weight'][positive].mean():.2f}" if positive.any() else "no pair"
    return f"step {int(moment['step'])}\n{pace}, {mean}"
