"""Learning curves of the pre-training and of the fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from spcl_fast.segmentation.evaluate.json_values import is_number
from spcl_fast.segmentation.report import figures
from spcl_fast.segmentation.report.compare import SCRATCH, SEED, arm_name
from spcl_fast.segmentation.report.figures import Picture
from spcl_fast.segmentation.report.runs import RunRecord

MANY_LINES = 6
MAX_RUN_LINES = 16  # of the fine-tuning; of more runs the means of arms are drawn
MAX_ARMS = 8
PRETRAINING_TITLES = (
    "Contrastive loss",
    "Mean weight of positive pairs",
    "Pace gamma",
    "kNN slice-position accuracy",
    "Learning rate",
    "Objective, loss + R",
)
PRETRAINING_CAPTION = (
    "Loss by step (pale) and its mean over each epoch (dots). The dashed line is log(N - 1) "
    "times the weights of the labels, the loss of an embedding that maps every slice to one "
    "point. A run that stays on it with all weights near 1 has learned nothing. Small weights "
    "lower the loss too, so read it together with the mean weight, the share of positive pairs in "
    "use. The kNN accuracy needs no mask: it is how often the nearest slices of other patients "
    "predict a slice's position, and should rise."
)
FINETUNING_CAPTION = (
    "Colours show the starting point of a run. The training loss is a moving mean. "
    "Validation Dice is 3-D, on patients used neither for training nor for testing; a line that "
    "is higher early learned faster, one that ends higher learned more."
)


def pretraining_curves(runs: Sequence[RunRecord]) -> Picture | None:
    """Draw loss, mean weight, gamma, learning rate, kNN accuracy and objective by step.

    Args:
        runs: Pre-training runs.

    Returns:
        The picture, or None if no run has a log.
    """
    runs = [run for run in runs if run.of_kind("step") or run.of_kind("epoch")]
    if not runs:
        return None
    found, runs = len(runs), _one_seed_each(runs)
    figure, axes = figures.panels(2, 3, width=12.0, height=6.2)
    loss, weight, gamma, knn, lr, objective = (ax for row in axes for ax in row)
    colours = {run.name: figures.COLOURS[i] for i, run in enumerate(runs)}
    for run in runs:
        colour = colours[run.name]
        _faint_and_epoch(loss, run, "loss", colour)
        _faint_and_epoch(weight, run, "mean_weight", colour)
        _gamma(gamma, run, colour)
        knn.plot(*run.series("epoch", "knn_position_accuracy"), color=colour, marker="o", ms=3)
        lr.plot(*run.series("step", "lr"), color=colour)
        objective.plot(*run.series("step", "objective"), color=colour, lw=1.0)
    _collapse_lines(loss, runs)
    for ax, title in zip((ax for row in axes for ax in row), PRETRAINING_TITLES, strict=True):
        figures.style_curves(ax, title)
        if _is_empty(ax):
            figures.say_empty(ax, "no pace" if ax is gamma else "nothing logged")
    weight.set_ylim(-0.03, 1.03)
    if len(runs) > 1:
        handles = [loss.plot([], [], color=colours[run.name], label=run.name)[0] for run in runs]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9
        )
    caption = PRETRAINING_CAPTION
    if len(runs) < found:
        caption += f" Drawn are {len(runs)} of {found} runs, one seed of each."
    return Picture("Pre-training", caption, figures.to_png(figure))


def finetuning_curves(runs: Sequence[RunRecord]) -> Picture | None:
    """Draw training loss and validation Dice by step, coloured by where the runs started.

    Args:
        runs: Fine-tuning runs.

    Returns:
        The picture, or None if no run has a log.
    """
    runs = [run for run in runs if run.of_kind("step") or run.of_kind("val")]
    if not runs:
        return None
    classes = _validated_classes(runs)
    figure, axes = figures.panels(1, 2 + len(classes), width=12.0, height=3.6)
    colours = _arm_colours(runs)
    if len(runs) > MAX_RUN_LINES:
        arms, note = _largest_arms(runs, colours)
        colours = {name: colours[name] for name in arms}
        for name, members in arms.items():
            _draw_arm(axes[0], classes, members, colours[name])
    else:
        note = " One line a run."
        alpha = 0.9 if len(runs) <= MANY_LINES else 0.55
        for run in runs:
            _draw_run(axes[0], classes, run, {"color": colours[_arm(run)], "alpha": alpha})
    titles = ("Training loss", "Validation Dice, mean", *classes)
    for ax, title in zip(axes[0], titles, strict=True):
        figures.style_curves(ax, title)
    for ax in axes[0][1:]:
        ax.set_ylim(-0.02, 1.02)
    for ax in axes[0]:
        if _is_empty(ax):
            figures.say_empty(ax, "nothing logged")
    handles = [axes[0][1].plot([], [], color=c, lw=2, label=n)[0] for n, c in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return Picture("Fine-tuning", FINETUNING_CAPTION + note, figures.to_png(figure))


def _is_empty(ax: Axes) -> bool:
    return all(np.size(line.get_xdata()) == 0 for line in ax.lines)


def _draw_run(
    row: Sequence[Axes], classes: Sequence[str], run: RunRecord, style: dict[str, Any]
) -> None:
    """Draw loss, mean Dice and the Dice of each class of a run."""
    steps, values = run.series("step", "loss")
    row[0].plot(steps, figures.smooth(values, max(1, len(values) // 30)), lw=1.2, **style)
    row[1].plot(*run.series("val", "dice_mean"), lw=1.6, marker="o", ms=2.5, **style)
    for ax, name in zip(row[2:], classes, strict=True):
        ax.plot(*_class_series(run, name), lw=1.2, marker="o", ms=2, **style)


def _draw_arm(
    row: Sequence[Axes], classes: Sequence[str], runs: Sequence[RunRecord], colour: str
) -> None:
    """Draw the means of the same over runs."""
    _arm_mean(row[0], [run.series("step", "loss") for run in runs], colour)
    _arm_mean(row[1], [run.series("val", "dice_mean") for run in runs], colour)
    for ax, name in zip(row[2:], classes, strict=True):
        _arm_mean(ax, [_class_series(run, name) for run in runs], colour)


def _one_seed_each(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Return the runs, or of many the first seed of each, at most as many as there are colours."""
    if len(runs) <= MANY_LINES:
        return list(runs)
    firsts: dict[str, RunRecord] = {}
    for run in runs:
        firsts.setdefault(SEED.sub("", run.name), run)
    return list(firsts.values())[: len(figures.COLOURS)]


def _largest_arms(
    runs: Sequence[RunRecord], names: Iterable[str]
) -> tuple[dict[str, list[RunRecord]], str]:
    """Return the arms to draw with their runs of one number of labelled scans, and what is drawn.

    The number is that with most runs: a mean over different numbers would tell nothing.
    """
    counts = [len(run.labelled_scans) for run in runs]
    count = max(sorted(set(counts)), key=counts.count)
    chosen = [run for run, n in zip(runs, counts, strict=True) if n == count]
    arms = {name: [run for run in chosen if _arm(run) == name] for name in names}
    arms = {name: members for name, members in arms.items() if members}
    kept = sorted(arms, key=lambda name: (name != SCRATCH, -len(arms[name])))[:MAX_ARMS]
    note = (
        f" Of the {len(runs)} runs, these are means over the {len(chosen)} with {count} labelled "
        "scans, with a band of one standard deviation over an arm"
    )
    left_out = len(arms) - len(kept)
    note += f"; {left_out} smaller arms are not drawn." if left_out else "."
    return {name: arms[name] for name in arms if name in kept}, note


def _arm_mean(ax: Axes, lines: Iterable[tuple[list[int], Any]], colour: str) -> None:
    """Draw the mean of curves and one standard deviation, at the steps that most of them have."""
    known = [(steps, np.asarray(values, dtype=float)) for steps, values in lines if len(steps)]
    if not known:
        return
    grid = max((steps for steps, _ in known), key=len)
    values = np.stack([np.interp(grid, steps, v, right=np.nan) for steps, v in known])
    mean, spread = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    width = max(1, len(grid) // 30)
    ax.fill_between(grid, mean - spread, mean + spread, color=colour, alpha=0.12, lw=0)
    ax.plot(grid, figures.smooth(mean, width), color=colour, lw=1.6)


def _faint_and_epoch(ax: Axes, run: RunRecord, key: str, colour: str) -> None:
    ax.plot(*run.series("step", key), color=colour, alpha=0.3, lw=0.9)
    ax.plot(*run.series("epoch", key), color=colour, lw=1.8, marker="o", ms=3)


def _collapse_lines(ax: Axes, runs: Sequence[RunRecord]) -> None:
    levels = {round(v, 6) for run in runs for v in run.series("epoch", "collapse_loss")[1]}
    if not levels:
        rows = (row for run in runs for row in run.of_kind("step"))
        counts = [row.get("num_rows") for row in rows]
        levels = {math.log(n - 1) for n in counts if is_number(n) and n > 2}
    for level in sorted(levels):
        ax.axhline(level, color=figures.INK, lw=1.0, ls=(0, (5, 3)))
        ax.annotate(
            f"collapsed: {level:.2f}",
            (1.0, level),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=figures.INK,
        )


def _gamma(ax: Axes, run: RunRecord, colour: str) -> None:
    """Draw gamma of one label, or of each; gamma = inf is not drawn."""
    rows = [row for row in run.of_kind("step") if "step" in row]
    styles = ("-", "--", ":", "-.")
    values = [(r["step"], r["gamma"]) for r in rows if r.get("gamma") is not None]
    by_label = [(s, g if isinstance(g, dict) else {"": g}) for s, g in values]
    for index, label in enumerate(sorted({key for _, gammas in by_label for key in gammas})):
        points = [(s, g[label]) for s, g in by_label if is_number(g.get(label))]
        if points:
            steps, gammas = zip(*points, strict=True)
            ax.plot(steps, gammas, color=colour, ls=styles[index % 4], label=label or None)
    if ax.get_legend_handles_labels()[1]:
        style: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 3}
        ax.legend(frameon=False, fontsize=8, **style)


def _arm(run: RunRecord) -> str:
    return arm_name(run) if run.evaluation is not None else f"{run.name} (not evaluated)"


def _arm_colours(runs: Sequence[RunRecord]) -> dict[str, str]:
    names = sorted({_arm(run) for run in runs}, key=lambda name: (name != SCRATCH, name))
    return figures.arm_colours(names, SCRATCH)


def _validated_classes(runs: Sequence[RunRecord]) -> list[str]:
    """Return the classes of the validation lines in the log's order, at most four."""
    names: dict[str, None] = {}
    for run in runs:
        for row in run.of_kind("val"):
            names |= dict.fromkeys(row["dice"] if isinstance(row.get("dice"), dict) else ())
    return list(names)[:4]


def _class_series(run: RunRecord, name: str) -> tuple[list[int], np.ndarray]:
    rows = [r for r in run.of_kind("val") if isinstance(r.get("dice"), dict) and "step" in r]
    pairs = [(r["step"], r["dice"][name]) for r in rows if is_number(r["dice"].get(name))]
    return [step for step, _ in pairs], np.array([value for _, value in pairs], dtype=float)
