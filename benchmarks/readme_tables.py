"""Write the tables of README.md from the JSON files in benchmarks/results.

    python -m benchmarks.readme_tables

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; a test compares it with its JSON.
"""

from __future__ import annotations

import json
import re
from typing import Any

from benchmarks._provenance import REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results" / "cpu"
README = REPOSITORY / "README.md"
ARM_NAMES = {
    "scratch": "from scratch",
    "simclr": "SimCLR",
    "position": "position",
    "self_paced_position": "self-paced position",
}


def losses() -> str:
    """Return the table of time and memory of the losses."""
    result = read("losses.json")
    providers = list(dict.fromkeys(row["provider"] for row in result["rows"]))
    cells = {(row["n"], row["provider"]): row for row in result["rows"]}
    lines = [
        "| rows N | " + " | ".join(f"{name}, ms (MiB)" for name in providers) + " |",
        "|---:|" + "---:|" * len(providers),
    ]
    for n in sorted({row["n"] for row in result["rows"]}):
        row = [cells[n, name] for name in providers]
        texts = [f"{r['time_ms']:,.1f} ({r['peak_mib']:,.0f})" for r in row]
        lines.append(f"| {n:,} | " + " | ".join(texts) + " |")
    note = (
        f"Forward and backward, D = {result['dim']}, 64 classes, linear weights, float32, "
        f"{result['threads']} threads of {result['processor'].split(' x ')[0]}; median time and "
        "peak memory above the inputs. `dense` is the reference in plain PyTorch, `products` only "
        "`S = z @ z.T; S @ z`."
    )
    return "\n".join([*lines, "", note, source("losses.json", result)])


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
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        table = render()
        text = pattern.sub(lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text)
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
