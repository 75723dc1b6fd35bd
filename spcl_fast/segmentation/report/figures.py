"""What all pictures share: colours, axes and the way to PNG; no global state of matplotlib."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK = "#1f2933"
FAINT = "#7b8794"
GRID = "#e4e7eb"
DARK = "#0f1419"  # behind scans
SCRATCH_COLOUR = "#7b8794"
# blue, vermilion, green, purple, orange, sky after Okabe and Ito, apart for colour-blind readers,
# then brown and indigo
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#e69f00", "#56b4e9", "#8c564b", "#332288")
CLASS_COLOURS = {"RV": "#22d3ee", "MYO": "#4ade80", "LV": "#f43f5e"}
# none of CLASS_COLOURS, so that a heart with atria and vessels has seven different colours
OTHER_CLASS_COLOURS = ("#facc15", "#c084fc", "#fb923c", "#60a5fa", "#f9a8d4", "#bef264", "#e5e7eb")
DOTS_PER_INCH = 120


@dataclass(frozen=True)
class Picture:
    """A picture for the page.

    Attributes:
        title: A few words.
        caption: How to read it.
        png: The encoded image.
    """

    title: str
    caption: str
    png: bytes

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def class_colour(name: str, index: int) -> str:
    """Return the colour of a foreground class, by name or by its place."""
    return CLASS_COLOURS.get(name, OTHER_CLASS_COLOURS[index % len(OTHER_CLASS_COLOURS)])


def arm_colours(names: Sequence[str], scratch: str) -> dict[str, str]:
    """Return a colour for each arm: grey for `scratch`, the others in the order of COLOURS."""
    others = [name for name in names if name != scratch]
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(others)}
    return {name: colours.get(name, SCRATCH_COLOUR) for name in names}


def panels(
    rows: int,
    columns: int,
    *,
    width: float,
    height: float,
    dark: bool = False,
    share_y: bool = False,
    width_ratios: Sequence[float] | None = None,
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure of (rows, columns) axes; width and height in inches.

    A dark figure is for scans: its axes stand close together.
    """
    pads: dict[str, Any] = {}
    if dark:
        pads = {"w_pad": 0.01, "h_pad": 0.01, "wspace": 0.0, "hspace": 0.0}
    figure = Figure(
        figsize=(width, height),
        layout=ConstrainedLayoutEngine(**pads),
        facecolor=DARK if dark else "white",
    )
    grid = figure.subplots(rows, columns, squeeze=False, sharey=share_y, width_ratios=width_ratios)
    return figure, [list(row) for row in grid]


def style_curves(ax: Axes, title: str, xlabel: str = "step") -> None:
    """Give an axes of curves its title, grid and quiet frame."""
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    ax.set_xlabel(xlabel, fontsize=9, color=FAINT)
    ax.tick_params(labelsize=9, colors=FAINT, length=0)
    ax.grid(color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(GRID)


def style_image(ax: Axes) -> None:
    """Take ticks and frame off an axes that shows an image."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def say_empty(ax: Axes, text: str) -> None:
    """Write into an axes why it shows nothing."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel("")
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=FAINT)


def smooth(values: Sequence[float], width: int) -> np.ndarray:
    """Return the centred moving mean over `width` values; windows shrink at both ends."""
    data = np.asarray(values, dtype=np.float64)
    if width < 2 or len(data) < 2:
        return data
    sums = np.concatenate([[0.0], np.cumsum(data)])
    index = np.arange(len(data))
    low = np.maximum(index - width // 2, 0)
    high = np.minimum(index + width // 2 + 1, len(data))
    means: np.ndarray = (sums[high] - sums[low]) / (high - low)
    return means


def to_png(figure: Figure) -> bytes:
    """Encode a figure."""
    buffer = io.BytesIO()
    figure.dpi = DOTS_PER_INCH
    # savefig would lay it out twice, the second time from where the first one left the axes
    FigureCanvasAgg(figure).print_png(buffer, metadata={})  # type: ignore[no-untyped-call]
    return buffer.getvalue()
