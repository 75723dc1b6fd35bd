"""The pair weights against pair loss and over a training: the figure of docs/pace.md.

python -m benchmarks.plot_pace docs/pace.png
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch

from spcl_fast.pacing import RelativePace, pair_weights

FACTORS = (0.5, 1.2, 2.0, 5.0, 15.0)  # gamma / log(N - 1)
NUM_ROWS = 4096
STEPS = 1000
# pairs by their loss in units of log(N - 1)
PAIRS = {
    "easy pair, half of log(N - 1)": 0.5,
    "chance: 1": 1.0,
    "hard pair: 1.5": 1.5,
}


def draw_weights(axis: Any, colours: Any) -> None:
    """Draw the weight against the pair loss, a colour for each gamma."""
    loss = torch.linspace(0, 2.5, 501)
    for k, factor in enumerate(FACTORS):
        colour = colours(k / (len(FACTORS) - 1) * 0.85)
        axis.plot(loss, pair_weights(loss, factor, "linear"), color=colour, label=f"{factor:g}")
        if factor < 2.5:
            axis.plot(loss, pair_weights(loss, factor, "hard"), color=colour, ls=":", lw=1)
    axis.axvline(1, color="0.7", lw=1, zorder=0)
    axis.text(1.02, 1.04, "chance: all rows equal", fontsize=8, color="0.4")
    axis.set(xlabel="pair loss / log(N - 1)", ylabel="weight w", ylim=(-0.02, 1.12), xlim=(0, 2.5))
    axis.set_title("linear (solid) and hard (dotted) weights", fontsize=10, loc="left")
    title = "gamma / log(N - 1)"
    axis.legend(title=title, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False)


def draw_training(axis: Any) -> None:
    """Draw the weights of three pairs over a training with the default pace."""
    pace, unit = RelativePace(STEPS), math.log(NUM_ROWS - 1)
    weights: dict[str, list[float]] = {name: [] for name in PAIRS}
    for _ in range(STEPS + 1):
        gamma = pace.gamma(NUM_ROWS)
        for name, share in PAIRS.items():
            loss = torch.tensor(share * unit, dtype=torch.float64)
            weights[name].append(pair_weights(loss, gamma, "linear").item())
        pace.step()
    for name, values in weights.items():
        axis.plot([k / STEPS for k in range(STEPS + 1)], values, label=name)
    axis.set(xlabel="share of the training", ylabel="weight w", ylim=(-0.02, 1.12), xlim=(0, 1))
    axis.set_title("RelativePace: 1.2 to 15, square root", fontsize=10, loc="left")
    axis.legend(title="pair loss / log(N - 1)", loc="lower right", fontsize=8, frameon=False)


def main(path: Path) -> None:
    """Write the figure."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_weights(left, colormaps["viridis"])
    draw_training(right)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
