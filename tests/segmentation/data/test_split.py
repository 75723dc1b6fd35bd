"""Splitting by patient: no straddling, strata, determinism, bounds."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from spcl_fast.segmentation.data.scan import Scan
from spcl_fast.segmentation.data.split import split_patients


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
