"""What an evaluation measured: evaluation.json, as it is written and as it is read.

The means over scans and classes are computed here and nowhere else. A class that a scan does not
annotate is NaN, null in the file, and in no mean. Files of earlier versions may lack the distances,
the paths and what the network was trained on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spcl_fast.atomic_file import atomic_file
from spcl_fast.segmentation.evaluate.json_values import (
    dict_or_empty,
    is_number,
    list_or_empty,
    text_or_none,
)

EVALUATION_FILE = "evaluation.json"


@dataclass(frozen=True)
class ScanScores:
    """Scores of one test scan, and how its files are read.

    Attributes:
        patient: Name of the patient.
        dice: 3-D Dice by class.
        hd95_mm: 95 % Hausdorff distance by class.
        image: Path of the image; a relative one starts at the folder of evaluation.json.
        mask: Path of the true labels, likewise.
        frame: As in `Scan`.
        stack_axis: As in `Scan`.
        classes: As in `Scan`.
        prediction: Path of the predicted labels, None if they were not written.
    """

    patient: str
    dice: Mapping[str, float]
    hd95_mm: Mapping[str, float] = field(default_factory=dict)
    image: str | None = None
    mask: str | None = None
    frame: int | None = None
    stack_axis: int = 2
    classes: Mapping[int, int] | None = None
    prediction: str | None = None

    @property
    def dice_mean(self) -> float:
        """Mean Dice over the classes that are annotated."""
        return _mean(self.dice.values())

    def to_json(self) -> dict[str, Any]:
        """Return a row of evaluation.json."""
        row = {
            "patient": self.patient,
            "dice": _nulls(self.dice),
            "hd95_mm": _nulls(self.hd95_mm),
            "image": self.image,
            "mask": self.mask,
            "frame": self.frame,
            "stack_axis": self.stack_axis,
            "classes": self.classes and [list(pair) for pair in sorted(self.classes.items())],
        }
        return row if self.prediction is None else row | {"prediction": self.prediction}

    @classmethod
    def from_json(cls, name: str, content: Any) -> ScanScores:
        """Read a row of evaluation.json.

        Args:
            name: Of the scan; without a patient it is taken to begin with that.
            content: The row.

        Raises:
            ValueError: It holds no Dice.
        """
        row = dict_or_empty(content)
        dice, distances = (dict_or_empty(row.get(key)) for key in ("dice", "hd95_mm"))
        known = [value for value in dice.values() if value is not None]
        if not known or not all(map(is_number, known)):
            raise ValueError(f"scan {name} must have a Dice of every class, got {row.get('dice')}")
        absent = {key for key, value in dice.items() if value is None}
        frame, axis, classes = row.get("frame"), row.get("stack_axis"), row.get("classes")
        return cls(
            patient=str(row.get("patient") or name.rsplit("_", 1)[0]),
            dice=_nans(dice),
            hd95_mm=_nans({k: v for k, v in distances.items() if is_number(v) or k in absent}),
            image=text_or_none(row.get("image")),
            mask=text_or_none(row.get("mask")),
            frame=None if frame is None else int(frame),
            stack_axis=2 if axis is None else int(axis),
            classes=None if classes is None else {int(value): int(k) for value, k in classes},
            prediction=text_or_none(row.get("prediction")),
        )


@dataclass(frozen=True)
class Evaluation:
    """Scores of a segmenter on its test scans.

    Attributes:
        classes: Names of the foreground classes.
        scans: Scores by name of the scan.
        labelled_scans: Names of the scans that the segmenter was trained on with their masks.
        num_training_scans: Scans of the training set, labelled or not; None if it is not known.
        initialised_from: Name of the pre-training run it started from; None is from scratch.
        pretrained_patients: Test and validation patients that the pre-training saw.
    """

    classes: tuple[str, ...]
    scans: Mapping[str, ScanScores]
    labelled_scans: tuple[str, ...] = ()
    num_training_scans: int | None = None
    initialised_from: str | None = None
    pretrained_patients: tuple[str, ...] = ()

    @property
    def dice(self) -> dict[str, float]:
        """Mean Dice over the scans that annotate it, by class; NaN if none does."""
        return {n: _mean([scan.dice[n] for scan in self.scans.values()]) for n in self.classes}

    @property
    def dice_mean(self) -> float:
        """Mean Dice over scans and classes."""
        return _mean(self.dice.values())

    @property
    def hd95_mm(self) -> dict[str, float]:
        """Mean HD95 over the scans, by class; a class whose distances are not known is left out."""
        rows = [scan.hd95_mm for scan in self.scans.values()]
        known = [name for name in self.classes if all(name in row for row in rows)]
        return {name: _mean([row[name] for row in rows]) for name in known}

    @property
    def hd95_mm_mean(self) -> float:
        """Mean HD95 over scans and classes."""
        return _mean(self.hd95_mm.values())

    def dice_by_patient(self, scans: Collection[str] | None = None) -> dict[str, float]:
        """Return the mean Dice over scans and classes of each test patient, sorted by name.

        Args:
            scans: The scans to take; None takes all.
        """
        values: dict[str, list[float]] = {}
        for name, scan in self.scans.items():
            if scans is None or name in scans:
                values.setdefault(scan.patient, []).append(scan.dice_mean)
        means = {patient: _mean(values[patient]) for patient in sorted(values)}
        return {patient: mean for patient, mean in means.items() if not math.isnan(mean)}

    @property
    def absences(self) -> dict[str, int]:
        """The number of scans that do not annotate a class, where there are any."""
        scans = self.scans.values()
        counts = {name: sum(math.isnan(scan.dice[name]) for scan in scans) for name in self.classes}
        return {name: count for name, count in counts.items() if count}

    def summary(self) -> str:
        """Return the means in one line."""
        classes = ", ".join(
            f"{name} not annotated" if math.isnan(value) else f"{name} {value:.3f}"
            for name, value in self.dice.items()
        )
        hd95 = self.hd95_mm_mean
        distance = f"{hd95:.1f} mm" if math.isfinite(hd95) else "undefined"
        return f"Dice {self.dice_mean:.3f} ({classes}), HD95 {distance}"

    def to_json(self) -> dict[str, Any]:
        """Return the content of evaluation.json."""
        content: dict[str, Any] = {
            "classes": list(self.classes),
            "scans": {name: scan.to_json() for name, scan in self.scans.items()},
            "dice": _nulls(self.dice),
            "dice_mean": _nulls({"": self.dice_mean})[""],
            "hd95_mm": _nulls(self.hd95_mm),
            "hd95_mm_mean": _nulls({"": self.hd95_mm_mean})[""],
        }
        if self.num_training_scans is None:
            return content
        content |= {
            "labelled_scans": list(self.labelled_scans),
            "num_training_scans": self.num_training_scans,
            "initialised_from": self.initialised_from,
        }
        seen = list(self.pretrained_patients)
        return content | {"pretrained_patients": seen} if seen else content

    @classmethod
    def from_json(cls, content: Any) -> Evaluation:
        """Read the content of an evaluation.json.

        Raises:
            ValueError: It holds no scans and their Dice.
        """
        content = dict_or_empty(content)
        rows = dict_or_empty(content.get("scans"))
        classes = tuple(map(str, list_or_empty(content.get("classes"))))
        if lacking := [k for k, v in (("classes", classes), ("scans", rows)) if not v]:
            raise ValueError(f"there are no {' and no '.join(lacking)}")
        scans = {name: ScanScores.from_json(name, row) for name, row in rows.items()}
        for name, scan in scans.items():
            if lacking := [c for c in classes if c not in scan.dice]:
                raise ValueError(f"scan {name} has no Dice of {', '.join(lacking)}")
        count, source = content.get("num_training_scans"), content.get("initialised_from")
        return cls(
            classes=classes,
            scans=scans,
            labelled_scans=tuple(map(str, list_or_empty(content.get("labelled_scans")))),
            num_training_scans=int(count) if is_number(count) else None,
            initialised_from=None if source is None else str(source),
            pretrained_patients=tuple(map(str, list_or_empty(content.get("pretrained_patients")))),
        )


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write evaluation.json, whole or not at all."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(evaluation.to_json(), indent=1), encoding="utf-8")


def read_evaluation(path: Path) -> Evaluation:
    """Read an evaluation.json.

    Raises:
        ValueError: It is not an evaluation; the message names the file.
        OSError: It cannot be read.
    """
    try:
        return Evaluation.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from None


def _mean(values: Collection[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _nulls(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: None if math.isnan(value) else value for key, value in values.items()}


def _nans(values: Mapping[str, Any]) -> dict[str, float]:
    known = {key: value for key, value in values.items() if value is None or is_number(value)}
    return {key: math.nan if value is None else float(value) for key, value in known.items()}
