"""The page: sections, tables and sentences from the run folders, written as one HTML file."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spcl_fast._version import __version__
from spcl_fast.report import compare
from spcl_fast.report.compare import SCRATCH
from spcl_fast.report.curves import finetuning_curves, pretraining_curves
from spcl_fast.report.embedding import embedding_picture
from spcl_fast.report.figures import Picture
from spcl_fast.report.overlays import overlay_picture, position_label_picture
from spcl_fast.report.pairs import weight_picture
from spcl_fast.report.runs import RunRecord, find_runs, is_number

DEFAULT_PARTITIONS = 3


@dataclass
class Table:
    """A table of the page: cells are text; the first `num_text` columns are left-aligned."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    num_text: int = 1


@dataclass
class Section:
    """A section of the page; `missing` says what it would need."""

    title: str
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def write_report(runs: Path, output: Path) -> Path:
    """Write one self-contained HTML page about every run below a folder.

    The page has its pictures inside and loads nothing. What is missing is named on the page.

    Args:
        runs: Folder with the run folders of `pretrain` and `finetune`, or one of them.
        output: The file to write; it is replaced as a whole or not at all.

    Returns:
        output.

    Raises:
        ValueError: If there is no run below the folder.
        OSError: If the page cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    runs, output = Path(runs), Path(output)
    records, problems = find_runs(runs)
    sections = _sections(records)
    environment = Environment(
        loader=PackageLoader("spcl_fast", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("template.html").render(
        sentences=compare.verdict(_stage(records, "finetune")),
        what_was_run=_what_was_run(records),
        sections=sections,
        problems=problems + [f"{run.name}: {text}" for run in records for text in run.problems],
        records=records,
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
    )
    _write_atomically(output, html)
    return output


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _stage(records: Sequence[RunRecord], stage: str) -> list[RunRecord]:
    return [run for run in records if run.stage == stage]


def _sections(records: Sequence[RunRecord]) -> list[Section]:
    pretrained, tuned = _stage(records, "pretrain"), _stage(records, "finetune")
    predictions = Section("What the networks predict")
    chosen, how = compare.shown_runs(tuned)
    _add(predictions, partial(overlay_picture, chosen, how), "No evaluated run has predictions.")

    tuning = Section("Fine-tuning")
    _add(tuning, partial(finetuning_curves, tuned), "There is no fine-tuning run with a log.")

    training = Section("Pre-training")
    _add(training, partial(pretraining_curves, pretrained), "There is no pre-training with a log.")

    weights, embedding = Section("Self-paced weights"), Section("Embedding")
    for run in pretrained:
        _add(weights, partial(weight_picture, run), f"{run.name} has no weights to draw.")
        _add(embedding, partial(embedding_picture, run), f"{run.name} has no embedding yet.")
    if not pretrained:
        weights.missing.append("There is no pre-training run.")
        embedding.missing.append("There is no pre-training run.")

    labels = Section("Meta-labels")
    partitions = _num_partitions(pretrained)
    _add(
        labels,
        partial(position_label_picture, tuned, partitions),
        "The pictures come from the scans of an evaluated run; there is none.",
    )
    return [_results(tuned), predictions, tuning, training, weights, embedding, labels]


def _add(section: Section, draw: Callable[[], Picture | None], missing: str) -> None:
    """Add a picture, or the sentence about why there is none."""
    try:
        picture = draw()
    except (ValueError, KeyError, TypeError, OSError) as error:  # files are the user's
        section.missing.append(f"A picture is missing: {_sentence(error)}.")
        return
    if picture is None:
        section.missing.append(missing)
    else:
        section.pictures.append(picture)


def _sentence(error: Exception) -> str:
    text = str(error).rstrip(".")
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _num_partitions(pretrained: Sequence[RunRecord]) -> int:
    for run in pretrained:
        value = _look_up(run.config, "pretrain", "loss", "num_partitions")
        if isinstance(value, int) and value > 0:
            return value
    return DEFAULT_PARTITIONS


def _look_up(config: Any, *keys: str) -> Any:
    """Return a nested value of a configuration, None where a key is missing."""
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _what_was_run(records: Sequence[RunRecord]) -> Table:
    rows = []
    for run in records:
        root = _look_up(run.config, "data", "root")
        steps = max((r["step"] for r in run.rows if is_number(r.get("step"))), default=0)
        if run.stage == "pretrain":
            labels = _look_up(run.config, "pretrain", "loss", "labels")
            pace = _look_up(run.config, "pretrain", "loss", "pace")
            detail = f"meta-labels {_listing(labels)}; pace {pace or 'not said'}"
        elif run.evaluation is None:
            detail = "not evaluated"
        else:
            scans = f"labelled: {_listing(run.labelled_scans)}"
            detail = f"{compare.arm_name(run)}; {scans}; {len(run.evaluation['scans'])} test scans"
        data = str(root) if root else "generated phantom"
        seed = _look_up(run.config, run.stage, "seed")
        rows.append([run.name, run.stage, detail, data, str(steps), _text(seed)])
    header = ["Run", "Stage", "What", "Data", "Steps", "Seed"]
    return Table("Every run found, with the steps it has logged.", header, rows, num_text=4)


def _results(tuned: Sequence[RunRecord]) -> Section:
    section = Section("Results")
    by_arm = compare.arms(tuned)
    if not by_arm:
        section.missing.append("No fine-tuning run has been evaluated yet, so there is no table.")
        return section
    members = [run for arm in by_arm.values() for run in arm]
    classes = list(dict.fromkeys(str(c) for r in members for c in (r.evaluation or {})["classes"]))
    section.tables.append(_arm_table(by_arm, classes))
    if pairs := _pair_table(by_arm):
        section.tables.append(pairs)
    section.tables.append(_run_table(by_arm, classes))
    return section


def _measures(run: RunRecord, classes: Sequence[str]) -> list[float | None]:
    """Return Dice of each class and their mean, then HD95 of each class and their mean."""
    evaluation = run.evaluation or {}
    distances = evaluation.get("hd95_mm") or {}
    dice = [evaluation["dice"].get(name) for name in classes]
    hd95 = [distances.get(name) for name in classes]
    known = [float(value) for value in hd95 if is_number(value)]
    return [*dice, evaluation["dice_mean"], *hd95, float(np.mean(known)) if known else None]


def _measure_names(classes: Sequence[str]) -> list[str]:
    names = [*classes, "mean"]
    return [f"Dice {name}" for name in names] + [f"HD95 {name}, mm" for name in names]


def _arm_table(by_arm: dict[str, list[RunRecord]], classes: Sequence[str]) -> Table:
    rows = []
    counts = sorted({len(run.labelled_scans) for arm in by_arm.values() for run in arm})
    for count, (name, arm) in itertools.product(counts, by_arm.items()):
        members = [run for run in arm if len(run.labelled_scans) == count]
        if not members:
            continue
        columns = zip(*(_measures(run, classes) for run in members), strict=True)
        cells = [_mean_and_spread(c, 3 if i <= len(classes) else 1) for i, c in enumerate(columns)]
        rows.append([name, str(count), str(len(members)), *cells])
    caption = (
        "Mean over the runs of an arm, and their standard deviation where there are several. Dice "
        "is 3-D (1 is perfect), HD95 is the 95 % Hausdorff distance (0 is perfect), each the mean "
        "over the test scans. The spread holds the luck of which scans were labelled."
    )
    return Table(caption, ["Arm", "Labelled", "Runs", *_measure_names(classes)], rows)


def _pair_table(by_arm: dict[str, list[RunRecord]]) -> Table | None:
    rows = []
    for name, members in by_arm.items():
        if name == SCRATCH:
            continue
        for pair in compare.pairs_of(by_arm.get(SCRATCH, []), members):
            dice = [_text(pair.dice_scratch), _text(pair.dice_other), f"{pair.gain:+.3f}"]
            rows.append([_listing(pair.labelled_scans), name, *dice, str(pair.num_scans)])
    if not rows:
        return None
    header = ["Labelled scans", "Arm", "Dice of scratch", "Dice of the arm", "Gain", "Test scans"]
    caption = (
        "Mean Dice in pairs of runs with the same labelled scans, over the test scans of both. The "
        "gain of a pair is free of the luck of which scans were labelled."
    )
    return Table(caption, header, rows, num_text=2)


def _run_table(by_arm: dict[str, list[RunRecord]], classes: Sequence[str]) -> Table:
    rows = []
    for name, members in by_arm.items():
        for run in members:
            values = _measures(run, classes)
            cells = [_text(v, 3 if i <= len(classes) else 1) for i, v in enumerate(values)]
            rows.append([run.name, name, _listing(run.labelled_scans), *cells])
    caption = "Every evaluated run: means over its test scans, as in its evaluation.json."
    header = ["Run", "Arm", "Labelled scans", *_measure_names(classes)]
    return Table(caption, header, rows, num_text=3)


def _mean_and_spread(values: Sequence[float | None], digits: int) -> str:
    known = [float(value) for value in values if value is not None and is_number(value)]
    if not known:
        return "-"
    mean = f"{np.mean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} \u00b1 {np.std(known, ddof=1):.{digits}f}"


def _text(value: Any, digits: int = 3) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _listing(values: Any) -> str:
    if not isinstance(values, (list, tuple)):
        return _text(values)
    return ", ".join(map(str, values)) or "none"
