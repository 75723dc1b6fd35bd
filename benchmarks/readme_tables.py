"""Write the tables of README.md and docs/ from the JSON files in benchmarks/results.

    python -m benchmarks.readme_tables

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; a test compares it with its JSON.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import cost_tables, kernel_tables, swap_tables
from benchmarks._provenance import REPOSITORY
from benchmarks.cost_tables import read, source

ARM_NAMES = {
    "scratch": "from scratch",
    "simclr": "SimCLR",
    "position": "position",
    "self_paced_position": "self-paced position",
}


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
        share = f"{pair['up']} of {len(result['picks'])}"
        lines.append(f"| {first} minus {second} | {pair['mean']:+.3f} | {interval} | {share} |")
    origin = source("one_scan_acdc.json", result, "benchmarks/results/cpu")
    return "\n".join([*lines, "", origin])


DOCUMENTS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"losses": cost_tables.summary, "one_scan": one_scan},
    "docs/benchmarks.md": cost_tables.TABLES,
    "docs/kernels.md": kernel_tables.TABLES,
    "docs/swap-in.md": {"step": swap_tables.step},
    "docs/distributed.md": {"scaling": swap_tables.scaling},
}


def main() -> None:
    for document, tables in DOCUMENTS.items():
        path = REPOSITORY / document
        text = path.read_text(encoding="utf-8")
        for name, render in tables.items():
            start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
            if start in text:
                before, rest = text.split(start)
                text = before + start + render() + "\n" + end + rest.split(end)[1]
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
