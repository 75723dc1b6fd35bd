"""Print GPU results as a Markdown table, from result files of `python -m benchmarks`.

    python -m benchmarks.device_table benchmarks/results/NAME/losses.json

TFLOP/s counts 4 N^2 D flops, or 8 N M D for N x M pairs. `of mm` is the share of the best torch.mm
in the same dtype and rounds; `of copy` is the share of the copy bandwidth that reading the
embeddings twice and writing the gradient once amounts to.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cost_tables import NAMES, both, cell_time, number, source, table

HEAD = ("loss", "dtype", "D", "N", "provider", "ms", "MiB", "TFLOP/s", "of mm", "of copy")
MORE_NAMES = {"infonce": "InfoNCE", "clip": "CLIP", "siglip": "SigLIP"}


def render(result: dict[str, Any], name: str) -> str:
    """Return the tables of one result file: the device, every row, what was left out and why."""
    device = result["device"]
    versions = f"CUDA {device['cuda']}, Triton {device['triton']}, PyTorch {result['torch']}"
    head = f"{device['name']}, driver {device['driver']}, {versions}."
    lines = [cells(row) for row in both(result)]
    reasons = dict.fromkeys(
        f"- {row['provider']}, {label(row['problem'])}, {row['dtype']}, N = {row['n']:,}: "
        f"{row['reason']}"
        for row in result["left_out"]
    )
    parts = [head, table(HEAD, lines), crossover(result["rows"]), "\n".join(reasons)]
    parts.append(source(name, result, "."))
    return "\n\n".join(part for part in parts if part)


def crossover(rows: Sequence[dict[str, Any]]) -> str:
    """Return, for every loss, dtype and N, the D from which native is faster than triton."""
    times = {(r["problem"], r["dtype"], r["n"], r["dim"], r["provider"]): r for r in rows}
    lines = []
    for problem, dtype, n in dict.fromkeys(key[:3] for key in times):
        faster = {
            dim: times[problem, dtype, n, dim, "native"]["time_ms"] < triton["time_ms"]
            for (*which, dim, provider), triton in times.items()
            if which == [problem, dtype, n] and provider == "triton"
            if (problem, dtype, n, dim, "native") in times
        }
        if faster:
            wins = [dim for dim, is_faster in faster.items() if is_faster]
            first = f"from D = {min(wins)} on" if wins else f"at no D up to {max(faster)}"
            lines.append(
                f"- native is faster than triton {first}: {label(problem)}, {dtype}, N = {n:,}"
            )
    return "\n".join(lines)


def cells(row: dict[str, Any]) -> list[str]:
    """Return the texts of HEAD."""
    start = [label(row["problem"]), row["dtype"], str(row["dim"]), f"{row['n']:,}"]
    start += [row["provider"], cell_time(row)]
    if "time_ms" not in row:
        return [*start, "-", "-", "-", "-"]
    peak = "-" if row["peak_mib"] is None else number(row["peak_mib"])
    mm, copy = (share(row, key) for key in ("mm_share", "copy_share"))
    return [*start, peak, f"{row['gflops'] / 1e3:.2f}", mm, copy]


def share(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.1%}".replace("%", " %") if key in row else "-"


def label(problem: str) -> str:
    return (NAMES | MORE_NAMES)[problem]


def main(paths: Sequence[str]) -> None:
    for path in map(Path, paths):
        print(render(json.loads(path.read_text(encoding="utf-8")), path.name))


if __name__ == "__main__":
    main(sys.argv[1:])
