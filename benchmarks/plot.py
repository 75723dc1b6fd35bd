"""Time and peak memory against the number of rows, from result files of `python -m benchmarks`.

    python -m benchmarks.plot benchmarks/results/cpu/losses.json

The plot is written beside the first file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.providers import PROVIDERS

AXES = {"time_ms": "time, ms", "peak_mib": "peak memory, MiB"}
FIXED = ("dim", "classes", "tau", "threads", "dtype")  # the plot shows the first of each
DTYPE = {"dtype": "float32"}  # for files that do not say


def write_plot(result: dict[str, Any], path: Path) -> None:
    """Write a PNG: a line per provider, a row of axes per problem, both axes logarithmic."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        print(f"no plot: {error}", file=sys.stderr)
        return
    rows = [DTYPE | row for row in result["rows"]]
    first = {key: rows[0][key] for key in FIXED}
    rows = [row for row in rows if first.items() <= row.items()]
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    figure = Figure(figsize=(10, 3.4 * len(problems)), layout="constrained")
    grid = figure.subplots(len(problems), len(AXES), squeeze=False)
    for problem, axes in zip(problems, grid, strict=True):
        for axis, (key, label) in zip(axes, AXES.items(), strict=True):
            mine = [row for row in rows if row["problem"] == problem and row[key]]
            draw(axis, mine, key)
            axis.set(title=problem, xlabel="rows N", ylabel=label)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize=7)
    dtype = first.pop("dtype")
    names = ", ".join(f"{key} {value}" for key, value in first.items())
    machine = result.get("device", {}).get("name", result["processor"])
    figure.suptitle(f"forward and backward, {dtype}, {names}; {machine}", fontsize=9)
    figure.savefig(path, dpi=110)


def draw(axis: Any, rows: list[dict[str, Any]], key: str) -> None:
    for index, name in enumerate(PROVIDERS):  # a provider keeps its colour in every plot
        points = sorted((row["n"], row[key]) for row in rows if row["provider"] == name)
        if points:
            style = "--" if name == "products" else "-"
            axis.plot(
                *zip(*points, strict=True), style, marker="o", ms=3, color=f"C{index}", label=name
            )


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:]]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    rows = [row for result in results for row in result["rows"]]
    write_plot(results[0] | {"rows": rows}, paths[0].with_suffix(".png"))
