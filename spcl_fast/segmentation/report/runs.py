"""Reading run folders: what is there, and a sentence for what is not."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from spcl_fast.segmentation.evaluate.json_values import is_number
from spcl_fast.segmentation.evaluate.record import EVALUATION_FILE, Evaluation

Row = dict[str, Any]
STAGES = ("pretrain", "finetune")
# libyaml's loader, ten times as fast, where PyYAML was built with it
SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class RunRecord:
    """What a run folder holds.

    Attributes:
        folder: The run folder.
        name: Name that is unique among the runs of a report.
        stage: "pretrain" or "finetune".
        config: The resolved configuration.
        config_text: The same, as written.
        rows: Lines of metrics.jsonl.
        evaluation: What evaluation.json holds; None if there is none.
        problems: Sentences about what is missing or unreadable.
    """

    folder: Path
    name: str
    stage: str
    config: Row
    config_text: str
    rows: list[Row] = field(default_factory=list)
    evaluation: Evaluation | None = None
    problems: list[str] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[Row]:
        """Return the log lines of one kind: "step", "epoch" or "val"."""
        return [row for row in self.rows if row.get("kind") == kind]

    def series(self, kind: str, key: str) -> tuple[list[int], list[float]]:
        """Return steps and values of the log lines of `kind` in which `key` is a finite number."""
        rows = [r for r in self.of_kind(kind) if is_number(r.get("step")) and is_number(r.get(key))]
        return [int(row["step"]) for row in rows], [float(row[key]) for row in rows]

    @property
    def scores(self) -> Evaluation:
        """The evaluation of a run that has one.

        Raises:
            ValueError: It has none.
        """
        if self.evaluation is None:
            raise ValueError(f"{self.name} has no evaluation")
        return self.evaluation

    @property
    def labelled_scans(self) -> tuple[str, ...]:
        """Names of the labelled scans of a run, sorted; none if it is not evaluated."""
        return tuple(sorted(self.evaluation.labelled_scans)) if self.evaluation else ()


def look_up(config: Any, *keys: str) -> Any:
    """Return a nested value of a configuration, None where a key is missing."""
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def find_runs(root: Path) -> tuple[list[RunRecord], list[str]]:
    """Find every run folder at or below a folder.

    Args:
        root: Folder to search.

    Returns:
        The runs in the order of their paths, and sentences about folders that could not be read.

    Raises:
        ValueError: If root is not a folder.
    """
    if not root.is_dir():
        raise ValueError(f"runs must be a folder, got {root}")
    runs, problems = [], []
    for path in sorted(root.rglob("config.yaml")):
        try:
            text = path.read_text(encoding="utf-8")
            config = yaml.load(text, Loader=SAFE_LOADER)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            problems.append(f"{path.relative_to(root)} cannot be read: {reason}.")
            continue
        if isinstance(config, dict) and config.get("stage") in STAGES:
            runs.append(_read_run(path.parent, config, text))
    _make_names_unique(runs, root)
    return runs, problems


def _read_run(folder: Path, config: Row, text: str) -> RunRecord:
    name = str(config.get("name") or folder.name)
    run = RunRecord(folder, name, config["stage"], config, text)
    run.rows = _read_log(run)
    if run.stage == "finetune":
        run.evaluation = _read_evaluation(run)
    return run


def _make_names_unique(runs: list[RunRecord], root: Path) -> None:
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = run.folder.relative_to(root).as_posix()


def _read_log(run: RunRecord) -> list[Row]:
    path = run.folder / "metrics.jsonl"
    if not path.is_file():
        run.problems.append("It has no metrics.jsonl, so its curves are missing.")
        return []
    rows, unread = [], 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        row = None
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
        if isinstance(row, dict):
            rows.append(row)
        elif line.strip() and number < len(lines):  # the last line of a killed run is torn
            unread += 1
    if unread:
        run.problems.append(f"{unread} lines of its metrics.jsonl cannot be read.")
    if not rows:
        run.problems.append("Its metrics.jsonl holds no line yet, so its curves are missing.")
    return rows


def _read_evaluation(run: RunRecord) -> Evaluation | None:
    path = run.folder / EVALUATION_FILE
    if not path.is_file():
        run.problems.append(
            "It has no evaluation.json (unfinished or not evaluated), so it is not in the tables."
        )
        return None
    try:
        return Evaluation.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        run.problems.append(f"Its evaluation.json cannot be read: {error}.")
        return None


def load_arrays(path: Path, needed: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Read an .npz file.

    Raises:
        ValueError: If the file cannot be read or lacks one of the needed arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except Exception as error:  # a torn archive raises zipfile, zlib, OS and value errors
        raise ValueError(f"{path.name} cannot be read: {error}") from None
    lacking = [key for key in needed if key not in arrays]
    if lacking:
        raise ValueError(f"{path.name} lacks {', '.join(lacking)}")
    return arrays
