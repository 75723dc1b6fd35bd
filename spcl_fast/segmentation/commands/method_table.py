"""The table of a reproduction: the paper's numbers, ours, and paired differences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spcl_fast.atomic_file import atomic_file
from spcl_fast.segmentation.commands.comparison import ReproduceConfig, method_folder
from spcl_fast.segmentation.commands.grid_runs import command_line, portable, versions
from spcl_fast.segmentation.commands.methods import METHODS, PAPER
from spcl_fast.segmentation.evaluate.paired import paired_evaluations
from spcl_fast.segmentation.evaluate.record import EVALUATION_FILE, Evaluation, read_evaluation
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.pretrain.config import PretrainConfig
from spcl_fast.segmentation.report import write_report
from spcl_fast.segmentation.report.tables import percent_and_spread

REFERENCE = "scratch"
PACING = ("self_paced", "position")  # what pair weights add, with the other meta-labels
Evaluations = dict[tuple[str, str], dict[int, Evaluation]]  # by method and count, then by seed


def write_reproduction(
    config: ReproduceConfig,
    stage1: PretrainConfig,
    stage2: FinetuneConfig,
    counts: Sequence[str],
    seeds: Sequence[int],
) -> Path:
    """Write reproduction.json, reproduction.md and report.html of the runs that are there.

    Returns:
        The path of reproduction.md.
    """
    found = _evaluations(config, counts, seeds)
    result: dict[str, Any] = {
        "command": command_line(f"reproduce {config.dataset}", config),
        "dataset": config.dataset,
        "protocol": config.protocol,
        "scale": config.scale,
        "seeds": list(seeds),
        "labelled": [int(c) if c.isdecimal() else c for c in counts],
        "methods": [_row(config, key, counts, found) for key in config.methods],
        "reference": REFERENCE,
        "paired": {
            key: pairs
            for key in config.methods
            if key != REFERENCE and (pairs := _paired(found, counts, key, REFERENCE))
        },
        "pacing": _paired(found, counts, *PACING),
        "versions": versions(),
        "config": {"pretrain": portable(stage1), "finetune": portable(stage2)},
    }
    with atomic_file(config.out / "reproduction.json") as path:
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    table = config.out / "reproduction.md"
    with atomic_file(table) as path:
        path.write_text("\n".join(markdown(result)) + "\n", encoding="utf-8")
    if found:
        write_report(config.out, config.out / "report.html")
    return table


def _evaluations(
    config: ReproduceConfig, counts: Sequence[str], seeds: Sequence[int]
) -> Evaluations:
    found: Evaluations = {}
    for key in config.methods:
        for count in counts:
            for seed in seeds:
                path = method_folder(config.out, key, count, seed) / EVALUATION_FILE
                if path.exists():
                    found.setdefault((key, count), {})[seed] = read_evaluation(path)
    return found


def _row(
    config: ReproduceConfig, key: str, counts: Sequence[str], found: Evaluations
) -> dict[str, Any]:
    paper = PAPER[config.dataset].get(key, {})
    runs = {c: list(found[key, c].values()) for c in counts if (key, c) in found}
    return {
        "key": key,
        "name": METHODS[key].name,
        "paper": {str(count): list(values) for count, values in paper.items()},
        "dice": {count: [e.dice_mean for e in runs[count]] for count in runs},
        "dice_by_class": {
            c: {name: [e.dice[name] for e in runs[c]] for name in runs[c][0].classes} for c in runs
        },
        "hd95_mm": {count: [e.hd95_mm_mean for e in runs[count]] for count in runs},
    }


def _paired(
    found: Evaluations, counts: Sequence[str], key: str, reference: str
) -> dict[str, dict[str, Any]]:
    """Return the differences of a method to another, by count, over seeds and test patients."""
    out: dict[str, dict[str, Any]] = {}
    for count in counts:
        runs, others = (found.get((k, count), {}) for k in (key, reference))
        if seeds := [seed for seed in runs if seed in others]:
            ours, theirs = ([arm[seed] for seed in seeds] for arm in (runs, others))
            out[count] = paired_evaluations(ours, theirs).to_json()
    return out


def markdown(result: dict[str, Any]) -> list[str]:
    """Return the table as Markdown lines: Dice in %, mean (std over seeds)."""
    counts = [str(count) for count in result["labelled"]]
    in_paper = {count for row in result["methods"] for count in row["paper"]}
    ours = f"ours | minus {result['reference']}"
    header = [f"{c} labelled: {'paper | ' if c in in_paper else ''}{ours}" for c in counts]
    lines = [
        f"3-D Dice in %, mean (standard deviation) over the seeds {result['seeds']}; differences "
        "with 95 % bootstrap intervals over seeds and test patients.",
        "",
        "| method | " + " | ".join(header) + " |",
        "|---|" + "---:|" * sum(2 + (count in in_paper) for count in counts),
    ]
    for row in result["methods"]:
        cells = [row["name"]]
        for count in counts:
            paper = row["paper"].get(count)
            if count in in_paper:
                cells.append(f"{paper[0]:.1f} ({paper[1]:.1f})" if paper else "")
            cells.append(percent_and_spread(row["dice"].get(count, [])))
            cells.append(_difference(result["paired"].get(row["key"], {}).get(count)))
        lines.append("| " + " | ".join(cells) + " |")
    if pacing := result["pacing"]:
        paced, plain = (METHODS[key].name for key in PACING)
        texts = [f"{_difference(pair)} with {count}" for count, pair in pacing.items()]
        lines += ["", f"{paced} minus {plain}: {', '.join(texts)} labelled."]
    return lines


def _difference(pair: dict[str, Any] | None) -> str:
    if pair is None:
        return ""
    low, high = pair["interval_95"]
    return f"{100 * pair['mean']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
