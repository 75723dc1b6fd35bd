"""Paired differences between arms that share labelled scans, seeds and test patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spcl_fast.segmentation.evaluate.json_values import dict_or_empty, is_number, numbers_in
from spcl_fast.segmentation.evaluate.record import Evaluation

BOOTSTRAPS = 10_000
DRAWN_AT_ONCE = 2**20  # values, 8 MiB


@dataclass(frozen=True)
class PairedDifference:
    """The mean of paired differences of Dice, with its 95 % bootstrap interval.

    Attributes:
        mean: Mean over runs and test patients.
        interval_95: Its lower and upper end.
        by_run: Mean over the test patients, of each pair of runs.
        up: Pairs of runs with a positive difference.
        pairs: Pairs of runs.
    """

    mean: float
    interval_95: tuple[float, float]
    by_run: tuple[float, ...]
    up: int
    pairs: int

    @property
    def mean_text(self) -> str:
        """The mean as text."""
        return f"{self.mean:+.3f}"

    @property
    def interval_text(self) -> str:
        """The interval as text."""
        low, high = self.interval_95
        return f"{low:+.3f} to {high:+.3f}"

    @property
    def text(self) -> str:
        """The mean and, in brackets, the interval."""
        return f"{self.mean_text} ({self.interval_text})"

    @property
    def percent_text(self) -> str:
        """The same in percentage points."""
        low, high = self.interval_95
        return f"{100 * self.mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"

    def to_json(self) -> dict[str, Any]:
        """Return an object for a JSON file."""
        return {
            "mean": self.mean,
            "interval_95": list(self.interval_95),
            "by_run": list(self.by_run),
            "up": self.up,
            "pairs": self.pairs,
        }

    @classmethod
    def from_json(cls, content: Any) -> PairedDifference | None:
        """Read an object of a JSON file; None if it lacks the mean or the interval."""
        content = dict_or_empty(content)
        mean, interval = content.get("mean"), numbers_in(content.get("interval_95"))
        if not is_number(mean) or len(interval) != 2:
            return None
        by_run, up, pairs = (content.get(key) for key in ("by_run", "up", "pairs"))
        return cls(
            mean=float(mean),
            interval_95=(interval[0], interval[1]),
            by_run=numbers_in(by_run),
            up=int(up) if is_number(up) else 0,
            pairs=int(pairs) if is_number(pairs) else len(numbers_in(by_run)),
        )


def paired_from_json(content: Any) -> dict[str, PairedDifference]:
    """Read an object of paired differences; anything else in it is left out."""
    found = {k: PairedDifference.from_json(v) for k, v in dict_or_empty(content).items()}
    return {key: pair for key, pair in found.items() if pair is not None}


def paired_difference(difference: NDArray[np.float64]) -> PairedDifference:
    """Return the mean of differences and its bootstrap interval.

    The interval holds the middle 95 % of the means of `BOOTSTRAPS` resampled arrays. It is too
    narrow where an axis is short: of n equally signed runs it never holds zero, although chance
    alone gives n equal signs with probability 2^(1 - n).

    Args:
        difference: (..., patients), for example (seeds, labelled scans, patients). Every axis is
            resampled by itself, with replacement: the runs of one seed are not independent.
    """
    low, high = np.percentile(_bootstrap_means(difference), [2.5, 97.5])
    by_run = difference.mean(-1).ravel()
    return PairedDifference(
        mean=float(difference.mean()),
        interval_95=(float(low), float(high)),
        by_run=tuple(by_run.tolist()),
        up=int((by_run > 0).sum()),
        pairs=by_run.size,
    )


def paired_evaluations(
    ours: Sequence[Evaluation],
    reference: Sequence[Evaluation],
    shape: tuple[int, ...] = (-1,),
) -> PairedDifference:
    """Return the paired difference of Dice of evaluations, run by run and patient by patient.

    Args:
        ours: Evaluations.
        reference: As many, with the same test patients, each the partner of one of ours.
        shape: Of the runs, for example (seeds, labelled scans).

    Raises:
        ValueError: Two evaluations have other test patients.
    """
    patients = list(ours[0].dice_by_patient())
    arms = (np.array([_dice_of(e, patients) for e in arm]) for arm in (ours, reference))
    return paired_difference(np.subtract(*arms).reshape(*shape, len(patients)))


def _dice_of(evaluation: Evaluation, patients: Sequence[str]) -> list[float]:
    dice = evaluation.dice_by_patient()
    if list(dice) != list(patients):
        names = " and ".join(", ".join(some) for some in (patients, dice))
        raise ValueError(f"paired evaluations must have the same test patients, got {names}")
    return list(dice.values())


def _bootstrap_means(difference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each of `BOOTSTRAPS` arrays whose every axis is drawn with replacement."""
    rng = np.random.default_rng(0)
    shape = difference.shape
    sizes = np.repeat(shape, shape)
    means = []
    for count in _counts(BOOTSTRAPS, max(1, DRAWN_AT_ONCE // difference.size)):
        drawn = rng.integers(np.broadcast_to(sizes, (count, len(sizes))))
        by_axis = np.split(drawn, np.cumsum(shape)[:-1], axis=1)
        index = tuple(
            places.reshape(count, *(-1 if k == axis else 1 for k in range(len(shape))))
            for axis, places in enumerate(by_axis)
        )
        means.append(difference[index].reshape(count, -1).mean(1))
    return np.concatenate(means)


def _counts(total: int, most: int) -> list[int]:
    """Return numbers of at most `most` that add up to `total`."""
    return [min(most, total - start) for start in range(0, total, most)]
