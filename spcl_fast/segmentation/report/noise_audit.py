"""The noise audit: does the pace find the wrong meta-labels, and does the Dice gain from it?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from spcl_fast.segmentation.report import figures
from spcl_fast.segmentation.report.audit_record import ORACLE, PLAIN, Audit, AuditRow
from spcl_fast.segmentation.report.figures import Picture
from spcl_fast.segmentation.report.tables import Table, mean_and_spread

NAMES = {PLAIN: "none (plain SupCon)", ORACLE: "oracle (wrong labels left out)"}
MAX_COLUMNS = 4
MARGIN = 0.02  # of the noise axis
RATES = np.linspace(0, 1, 201)
PACE_COLOURS = {
    PLAIN: figures.SCRATCH_COLOUR,
    "hard": figures.COLOURS[1],
    "linear": figures.COLOURS[0],
    "relative": figures.COLOURS[2],
    "quantile": figures.COLOURS[3],
    ORACLE: figures.COLOURS[4],
}
ROC_CAPTION = (
    "A share of the slices got a wrong meta-label on purpose. Each curve shows how well 1 - w, one "
    "minus the weight of a positive pair, separates pairs with a wrong label (true positives) from "
    "correct ones (false positives); the dashed diagonal is chance. Curves are means over seeds; "
    "the legend has the area under each."
)
TREND_CAPTION = (
    "Left: area under the ROC curve over the share of wrong labels; 0.5 is chance. Grey scores "
    "pairs by the loss of plain SupCon, that is by an embedding trained without a pace. Right: "
    "mean 3-D Dice after fine-tuning from each pre-training; grey is plain SupCon. Dots are single "
    "values, lines their means: two paces whose lines are closer than their dots are spread cannot "
    "be distinguished."
)


def roc_picture(audit: Audit) -> Picture | None:
    """Draw one panel a noise level, one ROC curve a pace; None if no row has a curve."""
    levels = [n for n in audit.noise if any(r.roc is not None for r in audit.at(noise=n))]
    if not levels:
        return None
    columns = min(MAX_COLUMNS, len(levels))
    lines = -(-len(levels) // columns)
    figure, axes = figures.panels(lines, columns, width=3.3 * max(columns, 2), height=3.6 * lines)
    flat = [ax for row in axes for ax in row]
    colours = _colours(audit)
    for ax, level in zip(flat, levels, strict=False):
        figures.style_curves(ax, f"{level:.0%} wrong", xlabel="sound pairs taken for wrong")
        ax.plot([0, 1], [0, 1], color=figures.FAINT, lw=1, ls=(0, (4, 3)))
        for pace in audit.paces:
            rows = [row for row in audit.at(pace, level) if row.roc is not None]
            if rows:
                _roc_curve(ax, pace, rows, colours[pace])
        ax.set_xlim(-0.02, 1.02)
        ax.set_ylim(-0.02, 1.02)
        ax.set_aspect("equal")
        style: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "ncols": 2}
        ax.legend(frameon=False, fontsize=8, handlelength=1.2, **style)
    for ax in flat[len(levels) :]:
        ax.set_visible(False)
    for row in axes:
        row[0].set_ylabel("wrong pairs found", fontsize=9, color=figures.FAINT)
    return Picture("ROC curves of the weights", ROC_CAPTION, figures.to_png(figure))


def trend_picture(audit: Audit) -> Picture | None:
    """Draw AUC and Dice over the noise, one line per pace; None if no row has either."""
    if all(row.auc is None and row.auc_loss is None and not row.dice for row in audit.rows):
        return None
    figure, axes = figures.panels(1, 2, width=11.0, height=4.4)
    auc, dice = axes[0]
    colours = _colours(audit)
    for pace in audit.paces:
        style: dict[str, Any] = {"color": colours[pace], "label": NAMES.get(pace, pace)}
        _trend(auc, _by_noise(audit.at(pace), _score), style)
        _trend(dice, _by_noise(audit.at(pace), lambda row: row.dice), style)
    for ax, title in ((auc, "AUC of finding wrong pairs"), (dice, "Mean 3-D Dice")):
        figures.style_curves(ax, title, xlabel="slices with a wrong meta-label")
        ax.set_xticks(audit.noise, [f"{level:.0%}" for level in audit.noise])
        ax.set_xlim(audit.noise[0] - MARGIN, audit.noise[-1] + MARGIN)
        if not ax.lines:
            figures.say_empty(ax, "nothing measured yet")
    if auc.lines:
        auc.axhline(0.5, color=figures.FAINT, lw=1, ls=(0, (4, 3)))
    handles = {h.get_label(): h for ax in (auc, dice) for h in ax.get_legend_handles_labels()[0]}
    figure.legend(
        handles=list(handles.values()),
        loc="outside lower center",
        ncols=len(handles) or 1,
        frameon=False,
        fontsize=9,
    )
    return Picture("AUC and Dice over the noise", TREND_CAPTION, figures.to_png(figure))


def audit_table(audit: Audit) -> Table:
    """Return a row for each noise level and pace."""
    rows = []
    for level in audit.noise:
        for pace in audit.paces:
            members = audit.at(pace, level)
            if not members:
                continue
            dice = [value for row in members for value in row.dice]
            gain = audit.gain(pace, level)
            rows.append(
                [
                    f"{level:.0%}",
                    NAMES.get(pace, pace),
                    str(len(members)),
                    mean_and_spread([row.auc for row in members], 3),
                    mean_and_spread([row.auc_loss for row in members], 3),
                    mean_and_spread([row.mean_weight for row in members], 2),
                    mean_and_spread(dice, 3),
                    *([gain.mean_text, gain.interval_text] if gain else ["-", "-"]),
                ]
            )
    header = ["Wrong", "Pace", "Seeds", "AUC of 1 - w", "AUC of the loss", "Mean weight"]
    header += ["Dice", "Gain", "95 % interval"]
    caption = (
        "Means over seeds, and over fine-tunings for Dice, with standard deviations. Gain: mean "
        "difference of Dice to plain SupCon at the same noise, seed and labelled scans, with a "
        "bootstrap interval over seeds, labelled scans and test patients."
    )
    return Table(caption, header, rows, num_text=2, may_fold=False)


def _score(row: AuditRow) -> tuple[float, ...]:
    """Return the AUC of the weights, of the loss for plain SupCon, if there is one."""
    auc = row.auc_loss if row.pace == PLAIN else row.auc
    return () if auc is None else (auc,)


def _by_noise(
    rows: Sequence[AuditRow], values_of: Callable[[AuditRow], Sequence[float]]
) -> dict[float, list[float]]:
    found: dict[float, list[float]] = {}
    for row in rows:
        if values := values_of(row):
            found.setdefault(row.noise, []).extend(values)
    return found


def _colours(audit: Audit) -> dict[str, str]:
    others = [pace for pace in audit.paces if pace not in PACE_COLOURS]
    spare = figures.COLOURS[5:]
    return PACE_COLOURS | {pace: spare[i % len(spare)] for i, pace in enumerate(others)}


def _roc_curve(ax: Axes, pace: str, rows: Sequence[AuditRow], colour: str) -> None:
    curves = []
    for row in rows:
        if row.roc is not None:
            curves.append(np.interp(RATES, *row.roc))
    areas = [row.auc for row in rows if row.auc is not None]
    area = f" {np.mean(areas):.2f}" if areas else ""
    ax.plot([0, *RATES], [0, *np.mean(curves, axis=0)], color=colour, lw=1.8, label=f"{pace}{area}")


def _trend(ax: Axes, values: dict[float, list[float]], style: dict[str, Any]) -> None:
    if not values:
        return
    levels = sorted(values)
    for level in levels:
        many = values[level]
        ax.scatter([level] * len(many), many, color=style["color"], s=16, alpha=0.4, lw=0)
    ax.plot(levels, [float(np.mean(values[x])) for x in levels], marker="o", ms=5, lw=2, **style)
