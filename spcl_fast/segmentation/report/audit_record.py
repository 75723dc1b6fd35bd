"""What a noise audit measured: audit.json, as it is written and as it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spcl_fast.segmentation.evaluate.json_values import (
    dict_or_empty,
    is_number,
    list_or_empty,
    number_or_none,
    numbers_in,
)
from spcl_fast.segmentation.evaluate.paired import PairedDifference, paired_from_json

PLAIN = "none"  # plain SupCon
ORACLE = "oracle"  # plain SupCon that knows which labels are wrong: an upper bound for every pace
NOISE_ONLY = ("wrong_pairs", "weight_wrong", "weight_right")


@dataclass(frozen=True)
class AuditRow:
    """One pre-training of a noise audit and the fine-tunings from it.

    Attributes:
        pace: Name of the pace.
        noise: Share of the slices with a wrong meta-label, in [0, 1].
        seed: Seed of the pre-training.
        dice: Mean 3-D Dice of each fine-tuning.
        auc: Area under the ROC curve of 1 - w for the wrong pairs; None without pace or noise.
        auc_loss: The same of the pair loss; None without noise.
        roc: False and true positive rates, both rising; None where there is no auc.
        mean_weight: Mean weight of the positive pairs.
        knn_position_accuracy: Of the slice positions, after the last epoch.
        wrong_pairs: Share of the positive pairs with a wrong label; None without noise, as below.
        weight_wrong: Their mean weight.
        weight_right: Mean weight of the other positive pairs.
    """

    pace: str
    noise: float
    seed: int
    dice: tuple[float, ...] = ()
    auc: float | None = None
    auc_loss: float | None = None
    roc: tuple[Sequence[float], Sequence[float]] | None = None
    mean_weight: float | None = None
    knn_position_accuracy: float | None = None
    wrong_pairs: float | None = None
    weight_wrong: float | None = None
    weight_right: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a row of audit.json."""
        rates = self.roc and {"fpr": list(self.roc[0]), "tpr": list(self.roc[1])}
        row = {
            "pace": self.pace,
            "noise": self.noise,
            "seed": self.seed,
            "dice": list(self.dice),
            "auc": self.auc,
            "auc_loss": self.auc_loss,
            "roc": rates,
            "mean_weight": self.mean_weight,
            "knn_position_accuracy": self.knn_position_accuracy,
        }
        return row | ({key: getattr(self, key) for key in NOISE_ONLY} if self.noise else {})

    @classmethod
    def from_json(cls, content: Any) -> AuditRow | None:
        """Read a row of audit.json; None if it lacks pace or noise."""
        row = dict_or_empty(content)
        pace, noise, seed = row.get("pace"), row.get("noise"), row.get("seed")
        if not isinstance(pace, str) or not is_number(noise):
            return None
        return cls(
            pace=pace,
            noise=float(noise),
            seed=int(seed) if is_number(seed) else 0,
            dice=numbers_in(row.get("dice")),
            auc=number_or_none(row.get("auc")),
            auc_loss=number_or_none(row.get("auc_loss")),
            roc=_rates(row.get("roc")),
            mean_weight=number_or_none(row.get("mean_weight")),
            knn_position_accuracy=number_or_none(row.get("knn_position_accuracy")),
            wrong_pairs=number_or_none(row.get("wrong_pairs")),
            weight_wrong=number_or_none(row.get("weight_wrong")),
            weight_right=number_or_none(row.get("weight_right")),
        )


@dataclass(frozen=True)
class Audit:
    """A noise audit.

    Attributes:
        paces: Names of the paces in their order.
        pace_settings: What each changes in the preset.
        noise: Shares of wrong labels in their order.
        rows: The pre-trainings.
        paired: Difference of Dice to plain SupCon, by pace and by noise as `noise_key` writes it.
    """

    paces: tuple[str, ...]
    pace_settings: Mapping[str, Any]
    noise: tuple[float, ...]
    rows: tuple[AuditRow, ...]
    paired: Mapping[str, Mapping[str, PairedDifference]] = field(default_factory=dict)

    def at(self, pace: str | None = None, noise: float | None = None) -> list[AuditRow]:
        """Return the rows of a pace, of a noise, or of both; None takes all."""
        return [r for r in self.rows if pace in (None, r.pace) and noise in (None, r.noise)]

    def gain(self, pace: str, noise: float) -> PairedDifference | None:
        """Return the difference of Dice to plain SupCon, None where it is not known."""
        return self.paired.get(pace, {}).get(noise_key(noise))

    def to_json(self) -> dict[str, Any]:
        """Return what audit.json says about the measurements."""
        return {
            "paces": list(self.paces),
            "pace_settings": dict(self.pace_settings),
            "noise": list(self.noise),
            "rows": [row.to_json() for row in self.rows],
            "paired_with": PLAIN,
            "paired": {
                pace: {noise: pair.to_json() for noise, pair in pairs.items()}
                for pace, pairs in self.paired.items()
            },
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Audit:
        """Read an audit.json; what it lacks, or cannot be read, is left out.

        Paces and shares of noise without a row are left out too.
        """
        found = (AuditRow.from_json(row) for row in list_or_empty(content.get("rows")))
        rows = tuple(row for row in found if row is not None)
        known = dict.fromkeys(row.pace for row in rows)
        named = dict.fromkeys(map(str, list_or_empty(content.get("paces"))))
        paired = dict_or_empty(content.get("paired"))
        return cls(
            paces=tuple(pace for pace in {**named, **known} if pace in known),
            pace_settings=dict_or_empty(content.get("pace_settings")),
            noise=tuple(sorted({row.noise for row in rows})),
            rows=rows,
            paired={pace: paired_from_json(pairs) for pace, pairs in paired.items()},
        )


def noise_key(noise: float) -> str:
    """Return a share of noise as a key of a JSON object."""
    return f"{noise:g}"


def _rates(content: Any) -> tuple[Sequence[float], Sequence[float]] | None:
    false, true = (numbers_in(dict_or_empty(content).get(key)) for key in ("fpr", "tpr"))
    return (false, true) if len(false) == len(true) >= 2 else None
