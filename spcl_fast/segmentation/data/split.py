"""Random splits into training and test patients, and into folds."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from spcl_fast.segmentation.data.scan import Scan


def split_patients(
    scans: Sequence[Scan], *, num_test: int, seed: int
) -> tuple[list[int], list[int]]:
    """Split scans by patient: all scans of a patient are on the same side.

    Test patients are drawn from each ``meta["group"]`` in proportion to its size (largest
    remainder); scans without a group form one group of their own. A patient without any mask is
    replaced by one with masks, of its group if there is one. So the result does not depend on the
    order of the scans, nor on the masks of patients that are not drawn.

    Args:
        scans: Scans of at least num_test + 1 patients, num_test of them with masks.
        num_test: Number of test patients.
        seed: The same seed gives the same split.

    Returns:
        Indices into scans: training, test; both ascending.

    Raises:
        ValueError: `num_test` is negative, not below the number of patients, or above that of
            patients with masks.
    """
    group_of: dict[str, str] = {}
    for scan in sorted(scans, key=lambda scan: scan.name):
        group_of.setdefault(scan.patient, scan.meta.get("group", ""))
    labelled = {scan.patient for scan in scans if scan.mask is not None}
    most = min(len(group_of) - 1, len(labelled))
    if not 0 <= num_test <= most:
        kind = "patients" if len(labelled) == len(group_of) else "patients with masks"
        raise ValueError(f"num_test must be in 0..{most} {kind}, got {num_test}")
    rng = random.Random(seed)
    test = _draw(group_of, num_test, rng)
    for patient in sorted(test - labelled):
        others = sorted(labelled - test)
        same = [other for other in others if group_of[other] == group_of[patient]]
        test = test - {patient} | {rng.choice(same or others)}
    indices = range(len(scans))
    train_indices = [i for i in indices if scans[i].patient not in test]
    return train_indices, [i for i in indices if scans[i].patient in test]


def patient_folds(scans: Sequence[Scan], *, folds: int, seed: int) -> list[list[int]]:
    """Divide scans into folds by patient: all scans of a patient are in the same fold.

    The patients of each ``meta["group"]`` are dealt out in turns, so folds differ by one patient at
    most, of each group too. A patient without any mask, who cannot validate, is in no fold. So
    the result does not depend on the order of the scans.

    Args:
        scans: Scans of at least as many patients with masks as there are folds.
        folds: Number of folds, at least 2.
        seed: The same seed gives the same folds.

    Returns:
        Indices into scans of each fold, ascending.

    Raises:
        ValueError: `folds` is out of range.
    """
    group_of = {scan.patient: scan.meta.get("group", "") for scan in scans if scan.mask is not None}
    if not 2 <= folds <= len(group_of):
        raise ValueError(f"folds must be in 2..{len(group_of)} patients with masks, got {folds}")
    rng = random.Random(seed)
    dealt = sorted(group_of)
    rng.shuffle(dealt)
    dealt.sort(key=lambda patient: group_of[patient])  # groups one after the other, each shuffled
    fold_of = {patient: place % folds for place, patient in enumerate(dealt)}
    indices = range(len(scans))
    return [[i for i in indices if fold_of.get(scans[i].patient) == k] for k in range(folds)]


def _draw(group_of: Mapping[str, str], num_test: int, rng: random.Random) -> set[str]:
    """Draw patients from each group in proportion to its size."""
    groups: dict[str, list[str]] = {}
    for patient in sorted(group_of):
        groups.setdefault(group_of[patient], []).append(patient)
    names = sorted(groups)
    rng.shuffle(names)  # breaks ties between fractions
    share = {name: num_test * len(groups[name]) / len(group_of) for name in names}
    quota = {name: int(share[name]) for name in names}
    by_fraction = sorted(names, key=lambda name: quota[name] - share[name])
    for name in by_fraction[: num_test - sum(quota.values())]:
        quota[name] += 1
    return {patient for name in sorted(names) for patient in rng.sample(groups[name], quota[name])}
