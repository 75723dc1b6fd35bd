"""The scores of an evaluation as tables: a few lines to read, and a CSV file with every case."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from spcl_fast.atomic_file import atomic_file
from spcl_fast.segmentation.evaluate.record import (
    EVALUATION_FILE,
    Evaluation,
    ScanScores,
    write_evaluation,
)

CASES_FILE = "evaluation.csv"
WORST_CASES = 3
_WIDTH = 100  # of the table, in characters


def write_scores(folder: Path, evaluation: Evaluation) -> None:
    """Write evaluation.json and evaluation.csv, which has a row for every scan."""
    write_evaluation(folder / EVALUATION_FILE, evaluation)
    path = folder / CASES_FILE
    with atomic_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(case_rows(evaluation))


def case_rows(evaluation: Evaluation) -> list[list[str]]:
    """Return a header and a row for every scan; a score that there is not is an empty cell."""
    names = evaluation.classes
    columns = [*names, "mean"]
    scores = [f"{measure}_{n}" for measure in ("dice", "hd95_mm") for n in columns]
    rows = [["scan", "patient", *scores]]
    for name, scan in evaluation.scans.items():
        dice = [scan.dice[n] for n in names]
        hd95 = [scan.hd95_mm.get(n, math.nan) for n in names]
        values = [*dice, _mean(dice), *hd95, _mean(hd95)]
        rows.append([name, scan.patient, *("" if math.isnan(v) else f"{v:.6g}" for v in values)])
    return rows


def summary_table(evaluation: Evaluation) -> str:
    """Return a row for every class with the means over the scans, and the worst scans."""
    from rich.console import Console
    from rich.table import Table

    scans = list(evaluation.scans.values())
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("class", "Dice", "sd", "lowest", "HD95 mm", "sd", "highest", "scans"):
        table.add_column(name, justify="left" if name == "class" else "right", no_wrap=True)
    for name in evaluation.classes:
        dice = _known(scan.dice[name] for scan in scans)
        hd95 = _known(scan.hd95_mm.get(name, math.nan) for scan in scans)
        count = str(len(dice)) if dice else "not annotated"
        table.add_row(name, *_cells(dice, 3, min), *_cells(hd95, 1, max), count)
    mean, distance = _text(evaluation.dice_mean, 3), _text(evaluation.hd95_mm_mean, 1)
    table.add_row("mean", mean, "", "", distance, "", "", str(len(scans)), style="bold")
    output = io.StringIO()
    Console(file=output, width=_WIDTH, highlight=False).print(table)
    return "\n".join([*map(str.rstrip, output.getvalue().splitlines()), *_worst(evaluation)])


def _worst(evaluation: Evaluation) -> list[str]:
    """Return sentences about the scans with the lowest mean Dice, if there are enough to choose."""
    scored = {n: s for n, s in evaluation.scans.items() if not math.isnan(s.dice_mean)}
    if len(scored) <= WORST_CASES:
        return []
    lowest = sorted(scored, key=lambda name: scored[name].dice_mean)[:WORST_CASES]
    return ["lowest:", *(f"  {name} {_by_class(scored[name])}" for name in lowest)]


def _by_class(scan: ScanScores) -> str:
    classes = ", ".join(f"{n} {_text(value, 3)}" for n, value in scan.dice.items())
    return f"{scan.dice_mean:.3f} ({classes})"


def _cells(
    values: Sequence[float], digits: int, extreme: Callable[[Sequence[float]], float]
) -> list[str]:
    if not values:
        return ["-", "-", "-"]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return [_text(v, digits) for v in (float(np.mean(values)), spread, extreme(values))]


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _mean(values: Iterable[float]) -> float:
    known = _known(values)
    return float(np.mean(known)) if known else math.nan


def _text(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"
