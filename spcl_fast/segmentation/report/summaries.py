"""Reading audit.json and reproduction.json, which sum up many runs; they may be incomplete."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from spcl_fast.segmentation.evaluate.json_values import is_number

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class AuditRow:
    """One pre-training of a noise audit and the fine-tunings from it.

    Attributes:
        pace: Name of the pace; "none" is plain SupCon.
        noise: Share of the slices with a wrong meta-label, in [0, 1].
        seed: Seed of the pre-training.
        auc: Area under the ROC curve of 1 - w for the wrong pairs; None without pace or noise.
        auc_loss: The same of the pair loss.
        mean_weight: Mean weight of the positive pairs.
        roc: False and true positive rates, both rising; None where there is no auc.
        dice: Mean 3-D Dice of each fine-tuning.
    """

    pace: str
    noise: float
    seed: int
    auc: float | None
    auc_loss: float | None
    mean_weight: float | None
    roc: tuple[np.ndarray, np.ndarray] | None
    dice: tuple[float, ...]


@dataclass(frozen=True)
class Audit:
    """A noise audit: rows, and the paces and noise levels in the order to draw them."""

    name: str
    rows: tuple[AuditRow, ...]
    paces: tuple[str, ...]
    noise: tuple[float, ...]


@dataclass(frozen=True)
class Difference:
    """A paired difference of Dice to the reference, with its 95 % interval."""

    mean: float
    low: float
    high: float
    up: int
    pairs: int


@dataclass(frozen=True)
class Method:
    """One row of a reproduction.

    Attributes:
        key: Short name.
        name: Name to print.
        paper: Mean and standard deviation of Dice in % by count of labelled scans.
        dice: Dice in [0, 1] of our runs by count.
        paired: Difference to the reference by count.
    """

    key: str
    name: str
    paper: dict[str, tuple[float, float]]
    dice: dict[str, tuple[float, ...]]
    paired: dict[str, Difference]


@dataclass(frozen=True)
class Reproduction:
    """The paper's comparison beside ours; counts of labelled scans in their order."""

    name: str
    title: str
    counts: tuple[str, ...]
    methods: tuple[Method, ...]
    reference: str


def find_audits(root: Path) -> tuple[list[Audit], list[str]]:
    """Read every audit.json at or below a folder; also return sentences about unreadable ones."""
    audits: list[Audit] = []
    problems: list[str] = []
    for name, content, rows in _entries(
        root, "audit.json", "rows", lambda row, _: _audit_row(row), "lack pace or noise", problems
    ):
        named = [str(p) for p in _list(content.get("paces"))]
        paces = list(dict.fromkeys([*named, *(r.pace for r in rows)]))
        known = {row.pace for row in rows}
        levels = tuple(sorted({row.noise for row in rows}))
        audits.append(Audit(name, tuple(rows), tuple(p for p in paces if p in known), levels))
    return audits, problems


def find_reproductions(root: Path) -> tuple[list[Reproduction], list[str]]:
    """Read every reproduction.json at or below a folder, like `find_audits`."""
    found: list[Reproduction] = []
    problems: list[str] = []
    for name, content, methods in _entries(
        root, "reproduction.json", "methods", _method, "have no key", problems
    ):
        named = [str(count) for count in _list(content.get("labelled"))]
        used = [count for method in methods for count in (*method.paper, *method.dice)]
        counts = tuple(named or sorted(set(used), key=count_order))
        parts = [content.get(key) for key in ("dataset", "protocol", "scale")]
        words = [str(part) for part in parts if isinstance(part, str)]
        title = ", ".join(words[:1] + [f"{w} {k}" for w, k in zip(words[1:], KINDS, strict=False)])
        reference = str(content.get("reference") or "scratch")
        found.append(Reproduction(name, title or name, counts, tuple(methods), reference))
    return found, problems


KINDS = ("protocol", "scale")


def count_order(count: str) -> tuple[bool, int, str]:
    """Return a key that sorts counts of labelled scans as numbers, and "all" last."""
    return (not count.isdecimal(), int(count) if count.isdecimal() else 0, count)


def _entries(
    root: Path,
    file: str,
    key: str,
    read: Callable[[Any, Mapping[str, Any]], Entry | None],
    lack: str,
    problems: list[str],
) -> Iterator[tuple[str, Mapping[str, Any], list[Entry]]]:
    """Yield path, content and the entries of its list `key`, of every `file` that has some."""
    for path, content in _contents(root, file, problems):
        name = path.relative_to(root).as_posix()
        listed = content.get(key)
        if not isinstance(listed, list):
            problems.append(f"{name} has no list of {key}, so it is not shown.")
            continue
        entries = [entry for item in listed if (entry := read(item, content)) is not None]
        if missing := len(listed) - len(entries):
            problems.append(f"{missing} of the {len(listed)} {key} of {name} {lack}: left out.")
        if entries:
            yield name, content, entries
        else:
            problems.append(f"{name} has no {key}, so it is not shown.")


def _contents(root: Path, name: str, problems: list[str]) -> list[tuple[Path, Mapping[str, Any]]]:
    found: list[tuple[Path, Mapping[str, Any]]] = []
    for path in sorted(root.rglob(name)):
        where = path.relative_to(root).as_posix()
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            problems.append(f"{where} cannot be read: {' '.join(str(error).split())}.")
            continue
        if isinstance(content, dict):
            found.append((path, content))
        else:
            problems.append(f"{where} must hold a JSON object, got {type(content).__name__}.")
    return found


def _audit_row(item: Any) -> AuditRow | None:
    item = _dict(item)
    pace, noise, seed = item.get("pace"), item.get("noise"), item.get("seed")
    if not isinstance(pace, str) or not is_number(noise):
        return None
    return AuditRow(
        pace,
        float(noise),
        int(seed) if is_number(seed) else 0,
        _number(item.get("auc")),
        _number(item.get("auc_loss")),
        _number(item.get("mean_weight")),
        _roc(item.get("roc")),
        _numbers(item.get("dice")),
    )


def _roc(value: Any) -> tuple[np.ndarray, np.ndarray] | None:
    rates = [_numbers(_dict(value).get(key)) for key in ("fpr", "tpr")]
    if len(rates[0]) != len(rates[1]) or len(rates[0]) < 2:
        return None
    return np.array(rates[0]), np.array(rates[1])


def _method(item: Any, content: Mapping[str, Any]) -> Method | None:
    item = _dict(item)
    key = item.get("key")
    if not isinstance(key, str):
        return None
    paper = {c: _numbers(value) for c, value in _dict(item.get("paper")).items()}
    dice = {c: _numbers(value) for c, value in _dict(item.get("dice")).items()}
    paired = _dict(_dict(content.get("paired")).get(key))
    pairs = {c: _difference(value) for c, value in paired.items()}
    return Method(
        key,
        str(item.get("name") or key),
        {c: (v[0], v[1]) for c, v in paper.items() if len(v) == 2},
        {c: values for c, values in dice.items() if values},
        {c: pair for c, pair in pairs.items() if pair is not None},
    )


def _difference(value: Any) -> Difference | None:
    value = _dict(value)
    interval, mean = _numbers(value.get("interval_95")), value.get("mean")
    if not is_number(mean) or len(interval) != 2:
        return None
    up, pairs = (int(v) if is_number(v) else 0 for v in (value.get("up"), value.get("pairs")))
    return Difference(float(mean), interval[0], interval[1], up, pairs)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in _list(value) if is_number(v))
