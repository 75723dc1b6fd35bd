"""Splitting by patient: no straddling, strata, determinism, bounds."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from spcl_fast.segmentation.data.scan import Scan
from spcl_fast.segmentation.data.split import patient_folds, split_patients


def make(sizes):
    """Two scans a patient; sizes: patients of each group."""
    scans, number = [], 0
    for group, count in sizes.items():
        for _ in range(count):
            number += 1
            for phase in ("ED", "ES"):
                name = f"p{number:03d}_{phase}"
                meta = {"group": group} if group else {}
                scans.append(Scan(name, f"p{number:03d}", phase, Path(), Path(), meta))
    return scans


# even and uneven strata, one group, groups of one patient, no group, extremes of num_test
@pytest.mark.parametrize(
    ("sizes", "num_test"),
    [
        ({"DCM": 16, "HCM": 16, "MINF": 16, "NOR": 16, "RV": 16}, 20),
        ({"DCM": 30, "HCM": 3, "NOR": 7}, 10),
        ({"NOR": 5}, 4),
        ({"a": 1, "b": 1, "c": 1, "d": 1}, 2),
        ({"": 9, "x": 3}, 4),
        ({"NOR": 5}, 0),
    ],
)
def test_split(sizes, num_test):
    scans = make(sizes)
    for seed in range(10):
        train, test = split_patients(scans, num_test=num_test, seed=seed)
        assert sorted(train + test) == list(range(len(scans)))
        assert train == sorted(train)
        train_patients = {scans[i].patient for i in train}
        test_patients = {scans[i].patient for i in test}
        assert not train_patients & test_patients
        assert len(test_patients) == num_test
        assert len(test) == 2 * num_test
        drawn = Counter(scans[i].meta.get("group", "") for i in test)
        for group, count in sizes.items():
            share = num_test * count / sum(sizes.values())
            assert int(share) <= drawn[group] / 2 <= int(share) + 1


def test_deterministic_in_seed_and_independent_of_order():
    scans = make({"DCM": 16, "NOR": 16})
    split = split_patients(scans, num_test=8, seed=3)
    assert split == split_patients(scans, num_test=8, seed=3)
    assert split != split_patients(scans, num_test=8, seed=4)
    backwards = scans[::-1]
    _, test = split_patients(backwards, num_test=8, seed=3)
    assert {backwards[i].name for i in test} == {scans[i].name for i in split[1]}


def test_every_patient_can_be_drawn():
    scans = make({"DCM": 4, "NOR": 4})
    drawn = {i for seed in range(60) for i in split_patients(scans, num_test=2, seed=seed)[1]}
    assert drawn == set(range(16))


# as many as there are patients, more, negative
@pytest.mark.parametrize("num_test", [5, 6, -1])
def test_bounds(num_test):
    with pytest.raises(ValueError, match=rf"num_test must be in 0\.\.4 patients, got {num_test}"):
        split_patients(make({"NOR": 5}), num_test=num_test, seed=0)


def test_masks_of_patients_that_are_not_drawn_do_not_matter():
    scans = make({"NOR": 6, "DCM": 9})
    for seed in range(10):
        train, test = split_patients(scans, num_test=4, seed=seed)
        without = [replace(s, mask=None) if i in train else s for i, s in enumerate(scans)]
        assert split_patients(without, num_test=4, seed=seed) == (train, test)


def test_test_patients_have_masks():
    scans = make({"NOR": 6, "DCM": 9})
    few = [s if s.patient in ("p002", "p008", "p009") else replace(s, mask=None) for s in scans]
    few[2] = replace(few[2], mask=None)  # one of the two scans of p002
    for seed in range(10):
        _, test = split_patients(few, num_test=2, seed=seed)
        assert len({few[i].patient for i in test} & {"p002", "p008", "p009"}) == 2
    with pytest.raises(ValueError, match=r"num_test must be in 0\.\.3 patients with masks, got 4"):
        split_patients(few, num_test=4, seed=0)


def by_name(scans, folds):
    return [{scans[i].name for i in fold} for fold in folds]


# even groups, uneven ones, fewer patients in a group than folds, as many patients as folds
@pytest.mark.parametrize(
    ("sizes", "folds"),
    [({"DCM": 15, "NOR": 15}, 5), ({"DCM": 30, "HCM": 3, "": 8}, 4), ({"a": 1, "b": 4}, 5)],
)
def test_folds_are_disjoint_cover_all_and_hold_whole_patients(sizes, folds):
    scans = make(sizes)
    for seed in range(5):
        found = patient_folds(scans, folds=folds, seed=seed)
        assert len(found) == folds
        assert sorted(i for fold in found for i in fold) == list(range(len(scans)))
        patients = [{scans[i].patient for i in fold} for fold in found]
        assert sum(map(len, patients)) == len(set().union(*patients)) == sum(sizes.values())
        for group, count in {None: sum(sizes.values()), **sizes}.items():
            drawn = [sum(group in (None, scans[i].meta.get("group", "")) for i in f) for f in found]
            assert {n // 2 for n in drawn} <= {count // folds, -(-count // folds)}


def test_folds_are_stable():
    scans = make({"DCM": 9, "NOR": 8})
    folds = patient_folds(scans, folds=5, seed=3)
    assert folds == patient_folds(scans, folds=5, seed=3)
    assert folds != patient_folds(scans, folds=5, seed=4)
    backwards = scans[::-1]
    again = patient_folds(backwards, folds=5, seed=3)
    assert by_name(backwards, again) == by_name(scans, folds)


def test_patients_without_masks_are_in_no_fold():
    scans = make({"NOR": 6})
    few = [replace(s, mask=None) if s.patient == "p002" else s for s in scans]
    few[4] = replace(few[4], mask=None)  # one of the two scans of p003
    folds = patient_folds(few, folds=5, seed=0)
    assert sorted(few[i].patient for fold in folds for i in fold) == sorted(
        s.patient for s in scans if s.patient != "p002"
    )


@pytest.mark.parametrize("folds", [1, 6])
def test_number_of_folds(folds):
    with pytest.raises(
        ValueError, match=rf"folds must be in 2\.\.5 patients with masks, got {folds}"
    ):
        patient_folds(make({"NOR": 5}), folds=folds, seed=0)
