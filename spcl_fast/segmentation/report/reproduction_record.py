"""The paper's comparison beside ours: reproduction.json, as it is written and as it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spcl_fast.segmentation.evaluate.json_values import (
    dict_or_empty,
    is_number,
    list_or_empty,
    numbers_in,
)
from spcl_fast.segmentation.evaluate.paired import PairedDifference, paired_from_json

REFERENCE = "scratch"


@dataclass(frozen=True)
class MethodScores:
    """One row of the table; every mapping is by the number of labelled scans, a digit or "all".

    Attributes:
        key: Short name.
        name: Name to print.
        paper: The paper's mean and standard deviation of Dice in %.
        dice: Dice in [0, 1] of each of our runs.
        dice_by_class: The same of each class.
        hd95_mm: HD95 of each of our runs.
        paired: Difference of Dice to the reference.
    """

    key: str
    name: str
    paper: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    dice: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    dice_by_class: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)
    hd95_mm: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    paired: Mapping[str, PairedDifference] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a row of reproduction.json, which holds `paired` elsewhere."""
        return {
            "key": self.key,
            "name": self.name,
            "paper": self.paper,
            "dice": self.dice,
            "dice_by_class": self.dice_by_class,
            "hd95_mm": self.hd95_mm,
        }

    @classmethod
    def from_json(cls, content: Any, paired: Any = None) -> MethodScores | None:
        """Read a row of reproduction.json and its differences; None if it has no key."""
        row = dict_or_empty(content)
        key = row.get("key")
        if not isinstance(key, str):
            return None
        paper, dice, hd95 = (_numbers_by_count(row.get(k)) for k in ("paper", "dice", "hd95_mm"))
        by_class = dict_or_empty(row.get("dice_by_class"))
        return cls(
            key=key,
            name=str(row.get("name") or key),
            paper={count: (v[0], v[1]) for count, v in paper.items() if len(v) == 2},
            dice=dice,
            dice_by_class={count: _numbers_by_count(v) for count, v in by_class.items()},
            hd95_mm=hd95,
            paired=paired_from_json(paired),
        )


@dataclass(frozen=True)
class Reproduction:
    """The paper's comparison beside ours.

    Attributes:
        dataset: Data set.
        protocol: Its division into labelled, other training and test scans.
        scale: Of the trainings.
        seeds: Seeds of the runs.
        counts: Numbers of labelled scans in their order, digits or "all".
        methods: Rows.
        pacing: By count, what pair weights add to the pre-training on positions.
        reference: Key of the method that the others are compared with.
    """

    dataset: str
    protocol: str
    scale: str
    seeds: tuple[int, ...]
    counts: tuple[str, ...]
    methods: tuple[MethodScores, ...]
    pacing: Mapping[str, PairedDifference] = field(default_factory=dict)
    reference: str = REFERENCE

    @property
    def title(self) -> str:
        """Data set, protocol and scale, as far as they are known."""
        parts = ((self.dataset, ""), (self.protocol, " protocol"), (self.scale, " scale"))
        return ", ".join(f"{value}{word}" for value, word in parts if value)

    def name_of(self, key: str) -> str:
        """Return the name to print of a method."""
        return next((method.name for method in self.methods if method.key == key), key)

    def to_json(self) -> dict[str, Any]:
        """Return what reproduction.json says about the measurements."""
        paired = {m.key: {c: p.to_json() for c, p in m.paired.items()} for m in self.methods}
        return {
            "dataset": self.dataset,
            "protocol": self.protocol,
            "scale": self.scale,
            "seeds": list(self.seeds),
            "labelled": [int(c) if c.isdecimal() else c for c in self.counts],
            "methods": [method.to_json() for method in self.methods],
            "reference": self.reference,
            "paired": {key: pairs for key, pairs in paired.items() if pairs},
            "pacing": {count: pair.to_json() for count, pair in self.pacing.items()},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Reproduction:
        """Read a reproduction.json; what it lacks, or cannot be read, is left out."""
        paired = dict_or_empty(content.get("paired"))
        rows = (dict_or_empty(row) for row in list_or_empty(content.get("methods")))
        found = (MethodScores.from_json(row, paired.get(str(row.get("key")))) for row in rows)
        methods = tuple(method for method in found if method is not None)
        named = map(str, list_or_empty(content.get("labelled")))
        used = {count for method in methods for count in (*method.paper, *method.dice)}
        dataset, protocol, scale = (content.get(k) for k in ("dataset", "protocol", "scale"))
        return cls(
            dataset=dataset if isinstance(dataset, str) else "",
            protocol=protocol if isinstance(protocol, str) else "",
            scale=scale if isinstance(scale, str) else "",
            seeds=tuple(int(s) for s in list_or_empty(content.get("seeds")) if is_number(s)),
            counts=tuple(named) or tuple(sorted(used, key=count_order)),
            methods=methods,
            pacing=paired_from_json(content.get("pacing")),
            reference=str(content.get("reference") or REFERENCE),
        )


def count_order(count: str) -> tuple[bool, int, str]:
    """Return a key that sorts counts of labelled scans as numbers, and "all" last."""
    return (not count.isdecimal(), int(count) if count.isdecimal() else 0, count)


def _numbers_by_count(content: Any) -> dict[str, tuple[float, ...]]:
    """Return the lists of numbers in an object that hold any."""
    found = {key: numbers_in(value) for key, value in dict_or_empty(content).items()}
    return {key: values for key, values in found.items() if values}
