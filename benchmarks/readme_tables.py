"""Write the tables of README.md from the JSON files in benchmarks/results.

    python -m benchmarks.readme_tables

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; a test compares it with its JSON.
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks._provenance import REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results" / "cpu"
README = REPOSITORY / "README.md"
LOSSES = ["losses.json", "losses_65536.json"]
PROBLEM_NAMES = {"self-paced": "self-paced", "supcon": "SupCon"}  # of the tables
ARM_NAMES = {
    "scratch": "from scratch",
    "simclr": "SimCLR",
    "position": "position",
    "self_paced_position": "self-paced position",
}


def losses() -> str:
    """Return the tables of time and memory of the losses, one a problem."""
    results = {name: read(name) for name in LOSSES if (RESULTS / name).exists()}
    result = results[LOSSES[0]]
    rows = [row for one in results.values() for row in one["rows"] + one["left_out"]]
    tables = [losses_of(problem, rows) for problem in PROBLEM_NAMES]
    first = rows[0]
    note = (
        f"Forward and backward, D = {first['dim']}, {first['classes']} classes, float32, "
        f"{first['threads']} threads of {result['processor'].split(' x ')[0]}; median time in ms "
        "and, in brackets, peak memory above the inputs in MiB. `refused`: against float64 more "
        "than twice as wrong as dense float32; `-`: beyond the limits of memory or time. "
        "`products` is only `S = z @ z.T; S @ z`, `dense` the reference in plain PyTorch, "
        "SupContrast the formula of its paper."
    )
    plot = "![time and memory against N](benchmarks/results/cpu/losses.png)"
    sources = [source(name, one) for name, one in results.items()]
    return "\n\n".join([*tables, note, plot, "\n".join(sources)])


def losses_of(problem: str, rows: list[dict[str, Any]]) -> str:
    """Return the table of one problem; a row has a time, or a reason why it was left out."""
    cells = {(row["n"], row["provider"]): row for row in rows if row["problem"] == problem}
    ran = [name for (_, name), row in cells.items() if "time_ms" in row]
    providers = list(dict.fromkeys(ran))
    lines = [
        f"| {PROBLEM_NAMES[problem]}, N | " + " | ".join(providers) + " |",
        "|---:|" + "---:|" * len(providers),
    ]
    for n in sorted({n for n, _ in cells}):
        texts = [cell(cells.get((n, name), {})) for name in providers]
        lines.append(f"| {n:,} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def cell(row: dict[str, Any]) -> str:
    if "time_ms" not in row:
        return "refused" if row.get("reason", "").startswith("refused") else "-"
    time = f"{row['time_ms']:,.2f}" if row["time_ms"] < 10 else f"{row['time_ms']:,.0f}"
    return time if row["peak_mib"] is None else f"{time} ({row['peak_mib']:,.0f})"


def one_scan() -> str:
    """Return the table of Dice from one labelled scan."""
    result = read("one_scan_acdc.json")
    lines = [
        "| labelled scan | " + " | ".join(ARM_NAMES.values()) + " |",
        "|---|" + "---:|" * len(ARM_NAMES),
    ]
    for pick in result["picks"]:
        texts = [f"{pick['dice'][arm]:.3f}" for arm in ARM_NAMES]
        lines.append(f"| {pick['labelled'][0]} | " + " | ".join(texts) + " |")
    means = [f"**{result['mean_dice'][arm]:.3f}**" for arm in ARM_NAMES]
    lines += ["| mean | " + " | ".join(means) + " |", ""]
    lines += ["| paired difference of Dice | mean | 95 % interval | scans with a gain |"]
    lines += ["|---|---:|---:|---:|"]
    for name, pair in result["paired"].items():
        first, second = (ARM_NAMES[arm] for arm in name.split(" - "))
        low, high = pair["interval_95"]
        interval = f"{low:+.3f} to {high:+.3f}"
        share = f"{pair['picks_up']} of {len(result['picks'])}"
        lines.append(f"| {first} minus {second} | {pair['mean']:+.3f} | {interval} | {share} |")
    return "\n".join([*lines, "", source("one_scan_acdc.json", result)])


TABLES = {"losses": losses, "one_scan": one_scan}


def read(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return result


def source(name: str, result: dict[str, Any]) -> str:
    return f"[{name}](benchmarks/results/cpu/{name}) from `{result['command']}`."


def main() -> None:
    text = README.read_text(encoding="utf-8")
    for name, render in TABLES.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if start in text:
            before, rest = text.split(start)
            text = before + start + render() + "\n" + end + rest.split(end)[1]
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
