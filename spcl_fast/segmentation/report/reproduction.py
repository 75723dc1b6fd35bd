"""A reproduction: the paper's table beside ours, and both as label-efficiency curves."""

from __future__ import annotations

from textwrap import fill

from matplotlib.axes import Axes

from spcl_fast.segmentation.evaluate.paired import PairedDifference
from spcl_fast.segmentation.report import figures
from spcl_fast.segmentation.report.efficiency import draw_curve, style_counts
from spcl_fast.segmentation.report.figures import Picture
from spcl_fast.segmentation.report.reproduction_record import MethodScores, Reproduction
from spcl_fast.segmentation.report.tables import Table, percent_and_spread

MAX_METHODS = 15
MAX_COLUMNS = 5
CAPTION = (
    "3-D Dice in % over the number of labelled scans, one panel per method: colour is ours (pale "
    "dots are seeds, the band is one standard deviation), hollow diamonds on a dashed line are the "
    "paper's means, if it reports them, and grey is our reference, {reference}, the same in every "
    "panel."
)
TABLE_CAPTION = (
    "3-D Dice in %, mean (standard deviation over seeds). Difference: ours minus our {reference}, "
    "in pairs with the same seed and test patients, with its 95 % interval, and in how many of the "
    'pairs it is above zero. "-" where the paper has no number or we have no run.'
)


def reproduction_table(result: Reproduction) -> Table:
    """Return one row per method and count: the paper's Dice, ours, and the paired difference."""
    rows = []
    for method in result.methods:
        for count in result.counts:
            if count not in method.paper and count not in method.dice:
                continue
            paper = method.paper.get(count)
            rows.append(
                [
                    method.name,
                    count,
                    f"{paper[0]:.1f} ({paper[1]:.1f})" if paper else "-",
                    percent_and_spread(method.dice.get(count, ())),
                    str(len(method.dice.get(count, ()))),
                    _difference(method.paired.get(count)),
                ]
            )
    caption = TABLE_CAPTION.format(reference=result.name_of(result.reference))
    header = ["Method", "Labelled", "Paper", "Ours", "Runs", "Difference"]
    return Table(caption, header, rows, may_fold=False)


def reproduction_picture(result: Reproduction) -> Picture | None:
    """Draw ours, the paper's and the reference, one panel per method; None without any run."""
    if not any(method.dice for method in result.methods):
        return None
    others = [m for m in result.methods if m.key != result.reference and (m.dice or m.paper)]
    methods = others or [m for m in result.methods if m.dice]
    left_out, methods = len(methods[MAX_METHODS:]), methods[:MAX_METHODS]
    columns = min(MAX_COLUMNS, len(methods))
    lines = -(-len(methods) // columns)
    figure, axes = figures.panels(
        lines, columns, width=2.6 * max(columns, 2), height=2.9 * lines, share_y=True
    )
    flat = [ax for row in axes for ax in row]
    for index, (ax, method) in enumerate(zip(flat, methods, strict=False)):
        _method_panel(ax, method, result, figures.COLOURS[index % len(figures.COLOURS)])
        style_counts(ax, result.counts, "Dice, %" if index % columns == 0 else "")
        title = fill(method.name, 24)
        ax.set_title(title, loc="left", fontsize=9.5, fontweight="bold", color=figures.INK)
    for ax in flat[len(methods) :]:
        ax.set_visible(False)
    caption = CAPTION.format(reference=result.name_of(result.reference))
    if left_out:
        caption += f" {left_out} more methods are in the table."
    title = ": ".join(["Reproduction", *([result.title] if result.title else [])])
    return Picture(title, caption, figures.to_png(figure))


def _method_panel(ax: Axes, method: MethodScores, result: Reproduction, colour: str) -> None:
    """Draw a method of ours and of the paper over the reference."""
    reference = next((m for m in result.methods if m.key == result.reference and m.dice), None)
    if reference is not None and reference is not method:
        draw_curve(ax, _percent(reference), result.counts, figures.SCRATCH_COLOUR, lw=1.2, ms=3)
    if method.dice:
        draw_curve(ax, _percent(method), result.counts, colour)
    paper = [(k, method.paper[c][0]) for k, c in enumerate(result.counts) if c in method.paper]
    if paper:
        x, y = zip(*paper, strict=True)
        ax.plot(x, y, color=figures.INK, ls=(0, (4, 3)), lw=1.2, marker="D", mfc="white", ms=5)


def _percent(method: MethodScores) -> dict[str, list[float]]:
    return {count: [100 * value for value in values] for count, values in method.dice.items()}


def _difference(pair: PairedDifference | None) -> str:
    if pair is None:
        return "-"
    return f"{pair.percent_text}, {pair.up}/{pair.pairs}" if pair.pairs else pair.percent_text
