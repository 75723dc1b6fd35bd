"""Paired differences between arms that share labelled scans, seeds and test patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BOOTSTRAPS = 10_000


def dice_by_patient(evaluation: Mapping[str, Any], patients: Sequence[str]) -> list[float]:
    """Return the mean Dice over scans and classes of each test patient of an evaluation.json."""
    values: dict[str, list[float]] = {patient: [] for patient in patients}
    for scan in evaluation["scans"].values():
        values[scan["patient"]].append(float(np.mean(list(scan["dice"].values()))))
    return [float(np.mean(values[patient])) for patient in patients]


def paired_difference(difference: NDArray[np.float64]) -> dict[str, Any]:
    """Return the mean of differences and its bootstrap interval.

    Args:
        difference: (..., patients), for example (seeds, labelled scans, patients). Every axis is
            resampled by itself, with replacement: the runs of one seed are not independent.
    """
    rng = np.random.default_rng(0)
    means = []
    for _ in range(BOOTSTRAPS):
        drawn = difference
        for axis, size in enumerate(difference.shape):
            drawn = drawn.take(rng.integers(size, size=size), axis)
        means.append(drawn.mean())
    low, high = np.percentile(means, [2.5, 97.5])
    by_run = difference.mean(-1).ravel()
    return {
        "mean": float(difference.mean()),
        "interval_95": [float(low), float(high)],
        "by_run": by_run.tolist(),
        "up": int((by_run > 0).sum()),
        "pairs": by_run.size,
    }


def paired_evaluations(
    ours: Sequence[Mapping[str, Any]],
    reference: Sequence[Mapping[str, Any]],
    shape: tuple[int, ...] = (-1,),
) -> dict[str, Any]:
    """Return the paired difference of Dice of evaluations, run by run and patient by patient.

    Args:
        ours: Contents of evaluation.json.
        reference: As many, with the same test patients, each the partner of one of ours.
        shape: Of the runs, for example (seeds, labelled scans).
    """
    patients = sorted({scan["patient"] for scan in ours[0]["scans"].values()})
    arms = (np.array([dice_by_patient(e, patients) for e in arm]) for arm in (ours, reference))
    return paired_difference(np.subtract(*arms).reshape(*shape, len(patients)))
