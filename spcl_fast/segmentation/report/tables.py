"""Tables of the page: what was run, means of arms, pairs, and every run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spcl_fast.segmentation.evaluate.json_values import is_number
from spcl_fast.segmentation.report import compare
from spcl_fast.segmentation.report.compare import SCRATCH
from spcl_fast.segmentation.report.groups import group_of
from spcl_fast.segmentation.report.runs import RunRecord, look_up
from spcl_fast.segmentation.runs.provenance import read_provenance

MAX_OPEN_ROWS = 12
MAX_LISTED = 8


@dataclass
class Table:
    """A table of the page: cells are text; the first `num_text` columns are left-aligned."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    num_text: int = 1
    title: str = "Table"
    may_fold: bool = True
    is_folded_always: bool = False

    @property
    def is_folded(self) -> bool:
        """Whether the page shows only the title until the reader opens it."""
        return self.is_folded_always or (self.may_fold and len(self.rows) > MAX_OPEN_ROWS)


def what_was_run(records: Sequence[RunRecord]) -> Table:
    """Return a row for every run: what it is, its data, its steps and its seed."""
    rows = []
    for run in records:
        steps = max((r["step"] for r in run.rows if is_number(r.get("step"))), default=0)
        if run.stage == "pretrain":
            labels = look_up(run.config, "pretrain", "loss", "labels")
            pace = look_up(run.config, "pretrain", "loss", "pace")
            detail = f"meta-labels {listing(labels)}; pace {pace or 'not said'}"
        elif run.evaluation is None:
            detail = "not evaluated"
        else:
            scans = f"labelled: {listing(run.labelled_scans)}"
            detail = f"{compare.arm_name(run)}; {scans}; {len(run.evaluation.scans)} test scans"
        data = ", ".join(part for part in group_of(run) if part)
        seed = look_up(run.config, run.stage, "seed")
        rows.append([run.name, run.stage, detail, data, str(steps), text(seed)])
    header = ["Run", "Stage", "What", "Data", "Steps", "Seed"]
    caption = "Every run found, with the steps it has logged."
    return Table(caption, header, rows, num_text=4, title=f"All {len(rows)} runs")


def how_it_was_run(records: Sequence[RunRecord]) -> Table | None:
    """Return a row for every start of a run that noted it: command, versions and hardware."""
    rows = []
    for run in records:
        for start in read_provenance(run.folder):
            versions = [f"{k} {start[k]}" for k in ("spcl_fast", "torch", "python") if k in start]
            threads = f"{start.get('threads')} threads"
            hardware = [start.get("gpu"), start.get("processor"), threads]
            cells = [", ".join(versions), ", ".join(str(x) for x in hardware if x)]
            rows.append([run.name, text(start.get("command")), *cells, text(start.get("started"))])
    if not rows:
        return None
    caption = "Every start of a run, a resumption too: its command, and where it ran."
    header = ["Run", "Command", "Versions", "Hardware", "Started"]
    title = f"Commands, versions and hardware of {len(rows)} starts"
    return Table(caption, header, rows, num_text=5, title=title, is_folded_always=True)


def result_tables(by_arm: dict[str, list[RunRecord]]) -> list[Table]:
    """Return the means of the arms, the pairs where there are any, and every evaluated run."""
    members = [run for arm in by_arm.values() for run in arm]
    classes = list(dict.fromkeys(name for run in members for name in run.scores.classes))
    pairs = _pair_table(by_arm)
    return [_arm_table(by_arm, classes), *([pairs] if pairs else []), _run_table(by_arm, classes)]


def _measures(run: RunRecord, classes: Sequence[str]) -> list[float | None]:
    """Return Dice of each class and their mean, then HD95 of each class and their mean."""
    scores, hd95 = run.scores, run.scores.hd95_mm
    dice = scores.dice
    distances = [*(hd95.get(name) for name in classes), scores.hd95_mm_mean if hd95 else None]
    return [*(dice.get(name) for name in classes), scores.dice_mean, *distances]


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
        cells = [mean_and_spread(c, 3 if i <= len(classes) else 1) for i, c in enumerate(columns)]
        rows.append([name, str(count), str(len(members)), *cells])
    caption = (
        "Mean over the runs of an arm, and their standard deviation where there are several. Dice "
        "is 3-D (1 is perfect), HD95 is the 95 % Hausdorff distance (0 is perfect), each the mean "
        "over the test scans. The spread holds the luck of which scans were labelled."
    )
    header = ["Arm", "Labelled", "Runs", *_measure_names(classes)]
    return Table(caption, header, rows, may_fold=len(rows) > 3 * MAX_OPEN_ROWS, title="Means")


def _pair_table(by_arm: dict[str, list[RunRecord]]) -> Table | None:
    rows = []
    for name, members in by_arm.items():
        if name == SCRATCH:
            continue
        for pair in compare.pairs_of(by_arm.get(SCRATCH, []), members):
            gain = compare.gain_of([pair])
            cells = [text(pair.dice_scratch), text(pair.dice_other), gain.mean_text]
            has_interval = len(pair.scratch_by_patient) > 1
            cells += [gain.interval_text if has_interval else "-", str(pair.num_scans)]
            rows.append([listing(pair.labelled_scans), name, *cells])
    if not rows:
        return None
    header = ["Labelled scans", "Arm", "Dice of scratch", "Dice of the arm", "Gain"]
    header += ["95 % interval", "Test scans"]
    caption = (
        "Mean Dice in pairs of runs with the same labelled scans, over the test scans of both. The "
        "gain of a pair does not depend on how well the labelled scans were chosen. Its bootstrap "
        "interval is over test patients alone: it does not cover the seeds of the trainings. Means "
        "are over the classes of a scan first: where scans lack classes they differ from the above."
    )
    return Table(caption, header, rows, num_text=2, title=f"All {len(rows)} pairs")


def _run_table(by_arm: dict[str, list[RunRecord]], classes: Sequence[str]) -> Table:
    rows = []
    for name, members in by_arm.items():
        for run in members:
            values = _measures(run, classes)
            cells = [text(v, 3 if i <= len(classes) else 1) for i, v in enumerate(values)]
            rows.append([run.name, name, listing(run.labelled_scans), *cells])
    caption = "Every evaluated run: means over its test scans, as in its evaluation.json."
    header = ["Run", "Arm", "Labelled scans", *_measure_names(classes)]
    return Table(caption, header, rows, num_text=3, title=f"All {len(rows)} evaluated runs")


def mean_and_spread(values: Sequence[float | None], digits: int) -> str:
    """Return the mean and, of two or more, the standard deviation; "-" where there is none."""
    known = [float(value) for value in values if value is not None and is_number(value)]
    if not known:
        return "-"
    mean = f"{np.mean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} \u00b1 {np.std(known, ddof=1):.{digits}f}"


def percent_and_spread(values: Sequence[float]) -> str:
    """Return shares in % as the paper prints them: mean (standard deviation), "-" for none."""
    if not values:
        return "-"
    spread = f" ({100 * np.std(values, ddof=1):.1f})" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread}"


def text(value: Any, digits: int = 3) -> str:
    """Return a cell: floats with a fixed number of digits, "-" for None and NaN."""
    if value is None or value != value:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def listing(values: Any) -> str:
    """Return values separated by commas; of many, the first and how many more there are."""
    if not isinstance(values, (list, tuple)):
        return text(values)
    shown = list(map(str, values[:MAX_LISTED]))
    more = [f"and {len(values) - MAX_LISTED} more"] if len(values) > MAX_LISTED else []
    return ", ".join([*shown, *more]) or "none"
