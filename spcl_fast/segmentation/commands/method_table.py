"""The table of a reproduction: the paper's numbers, ours, and paired differences."""

from __future__ import annotations

import json
from collections.abc import Sequence

from spcl_fast.atomic_file import atomic_file
from spcl_fast.segmentation.commands.comparison import ReproduceConfig, method_folder
from spcl_fast.segmentation.commands.grid_runs import command_line, portable, versions
from spcl_fast.segmentation.commands.methods import METHODS, PAPER
from spcl_fast.segmentation.evaluate.paired import PairedDifference, paired_evaluations
from spcl_fast.segmentation.evaluate.record import EVALUATION_FILE, Evaluation, read_evaluation
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.pretrain.config import PretrainConfig
from spcl_fast.segmentation.report import write_report
from spcl_fast.segmentation.report.reproduction_record import (
    REFERENCE,
    MethodScores,
    Reproduction,
)
from spcl_fast.segmentation.report.summaries import REPRODUCTION_FILE
from spcl_fast.segmentation.report.tables import percent_and_spread

TABLE_FILE = "reproduction.md"
PACING = ("self_paced", "position")  # what pair weights add, with the other meta-labels
Evaluations = dict[tuple[str, str], dict[int, Evaluation]]  # by method and count, then by seed


def write_reproduction(
    config: ReproduceConfig,
    stage1: PretrainConfig,
    stage2: FinetuneConfig,
    counts: Sequence[str],
    seeds: Sequence[int],
) -> None:
    """Write reproduction.json, reproduction.md and report.html of the runs that are there."""
    found = _evaluations(config, counts, seeds)
    result = Reproduction(
        dataset=config.dataset,
        protocol=config.protocol,
        scale=config.scale,
        seeds=tuple(seeds),
        counts=tuple(counts),
        methods=tuple(_scores(config, key, counts, found) for key in config.methods),
        pacing=_paired(found, counts, *PACING),
    )
    content = {
        "command": command_line(f"reproduce {config.dataset}", config),
        **result.to_json(),
        "versions": versions(),
        "config": {"pretrain": portable(stage1), "finetune": portable(stage2)},
    }
    with atomic_file(config.out / REPRODUCTION_FILE) as path:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    with atomic_file(config.out / TABLE_FILE) as path:
        path.write_text("\n".join(markdown(result)) + "\n", encoding="utf-8")
    if found:
        write_report(config.out, config.out / "report.html")


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


def _scores(
    config: ReproduceConfig, key: str, counts: Sequence[str], found: Evaluations
) -> MethodScores:
    paper = PAPER[config.dataset].get(key, {})
    runs = {c: list(found[key, c].values()) for c in counts if (key, c) in found}
    return MethodScores(
        key=key,
        name=METHODS[key].name,
        paper={str(count): values for count, values in paper.items()},
        dice={count: tuple(e.dice_mean for e in runs[count]) for count in runs},
        dice_by_class={
            c: {name: tuple(e.dice[name] for e in runs[c]) for name in runs[c][0].classes}
            for c in runs
        },
        hd95_mm={count: tuple(e.hd95_mm_mean for e in runs[count]) for count in runs},
        paired={} if key == REFERENCE else _paired(found, counts, key, REFERENCE),
    )


def _paired(
    found: Evaluations, counts: Sequence[str], key: str, reference: str
) -> dict[str, PairedDifference]:
    """Return the differences of a method to another, by count, over seeds and test patients."""
    differences: dict[str, PairedDifference] = {}
    for count in counts:
        runs, others = (found.get((k, count), {}) for k in (key, reference))
        if seeds := [seed for seed in runs if seed in others]:
            ours, theirs = ([arm[seed] for seed in seeds] for arm in (runs, others))
            differences[count] = paired_evaluations(ours, theirs)
    return differences


def markdown(result: Reproduction) -> list[str]:
    """Return the table as Markdown lines: Dice in %, mean (std over seeds)."""
    in_paper = {count for method in result.methods for count in method.paper}
    ours = f"ours | minus {result.reference}"
    header = [f"{c} labelled: {'paper | ' if c in in_paper else ''}{ours}" for c in result.counts]
    lines = [
        f"3-D Dice in %, mean (standard deviation) over the seeds {list(result.seeds)}; "
        "differences with 95 % bootstrap intervals over seeds and test patients.",
        "",
        "| method | " + " | ".join(header) + " |",
        "|---|" + "---:|" * sum(2 + (count in in_paper) for count in result.counts),
    ]
    for method in result.methods:
        cells = [method.name]
        for count in result.counts:
            paper, pair = method.paper.get(count), method.paired.get(count)
            if count in in_paper:
                cells.append(f"{paper[0]:.1f} ({paper[1]:.1f})" if paper else "")
            cells.append(percent_and_spread(method.dice.get(count, ())))
            cells.append(pair.percent_text if pair else "")
        lines.append("| " + " | ".join(cells) + " |")
    if result.pacing:
        paced, plain = map(result.name_of, PACING)
        texts = [f"{pair.percent_text} with {count}" for count, pair in result.pacing.items()]
        lines += ["", f"{paced} minus {plain}: {', '.join(texts)} labelled."]
    return lines
