"""Protocols: lists that agree with their sources, one set a patient, and nothing missing unsaid."""

import dataclasses
import random
from pathlib import Path

import pytest

from spcl_fast.segmentation.data.find import find_data
from spcl_fast.segmentation.data.protocol import (
    Case,
    Protocol,
    load_protocol,
    protocol_names,
    split_by_protocol,
)
from spcl_fast.segmentation.data.scan import Scan
from spcl_fast.segmentation.data.volume import read_image

# Every protocol: patients to train, validate and test on, and cases (or scans) of each count.
PUBLISHED = {
    ("spcl", "acdc"): ((87, 4, 9), {1: 1, 2: 2, 4: 4, 8: 8}),
    ("spcl", "promise12"): ((40, 3, 7), {3: 3, 5: 5, 7: 7}),
    ("spcl", "mmwhs"): ((10, 4, 6), {1: 1, 2: 2}),
    ("ssl4mis", "acdc"): (
        (70, 10, 20),
        {1: 2, 3: 6, 7: 14, 14: 28, 21: 42, 28: 56, 35: 70, 70: 140},
    ),
    ("chaitanya", "acdc"): ((54, 2, 20), {1: 2, 2: 4, 8: 16}),
    ("chaitanya", "mmwhs"): ((8, 2, 10), {1: 1, 2: 2, 8: 8}),
    ("chaitanya", "msd_prostate"): ((15, 2, 15), {1: 1, 2: 2, 8: 8}),
}
ACDC = [f"patient{number:03d}" for number in range(1, 101)]


def acdc_scans(patients):
    return [
        Scan(f"{patient}_frame{frame}", patient, phase, Path(), Path())
        for patient in patients
        for phase, frame in (("ED", "01"), ("ES", "12"))
    ]


def patients_of(cases):
    return list(dict.fromkeys(case.patient for case in cases))


def names(scans):
    return [scan.name for scan in scans]


def test_every_file_is_expected():
    found = {(name, d) for _, d in PUBLISHED for name in protocol_names(d)}
    assert found == set(PUBLISHED)
    assert protocol_names("acdc") == ["chaitanya", "spcl", "ssl4mis"]
    assert protocol_names("unknown") == []


@pytest.mark.parametrize(("name", "dataset"), PUBLISHED)  # each file
def test_lists_have_the_published_sizes(name, dataset):
    protocol = load_protocol(name, dataset)
    sets = [patients_of(getattr(protocol, which)) for which in ("train", "val", "test")]
    sizes, labelled = PUBLISHED[name, dataset]
    assert tuple(map(len, sets)) == sizes
    assert len(set().union(*sets)) == sum(sizes)
    assert {count: len(cases) for count, cases in protocol.labelled.items()} == labelled
    assert set(protocol.exact) == {"train", "val", "test", "labelled"}
    assert protocol.source.startswith("github.com/")
    assert protocol.unit in ("scan", "patient")
    for cases in (protocol.train, protocol.val, protocol.test, *protocol.labelled.values()):
        assert len(set(cases)) == len(cases)
        assert {case.phase for case in cases} <= ({"ED", "ES"} if dataset == "acdc" else {""})


@pytest.mark.parametrize(("name", "dataset"), PUBLISHED)  # each file
def test_every_pick_labels_other_training_cases(name, dataset):
    first, seen = load_protocol(name, dataset), []
    assert first.num_picks == (5 if name == "chaitanya" else 1)
    for pick in range(first.num_picks):
        protocol = load_protocol(name, dataset, pick=pick)
        assert (protocol.train, protocol.test) == (first.train, first.test)
        seen += [frozenset(cases) for cases in protocol.labelled.values()]
        for count, cases in protocol.labelled.items():
            labelled = cases if protocol.unit == "scan" else patients_of(cases)
            assert len(labelled) == count
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("name", ["spcl", "ssl4mis"])  # the two that use all of ACDC's training set
def test_all_hundred_patients_have_a_place(name):
    protocol = load_protocol(name, "acdc")
    everyone = patients_of([*protocol.train, *protocol.val, *protocol.test])
    assert sorted(everyone) == ACDC
    split = split_by_protocol(acdc_scans([*ACDC, "patient101"]), protocol)
    assert len(split.train) + len(split.val) + len(split.test) == 200
    assert split.missing == []
    assert split.unused == ["patient101_frame01", "patient101_frame12"]
    assert set(split.labelled) == set(protocol.labelled)


def test_counts_of_scans_as_in_the_paper():
    protocol = load_protocol("spcl", "acdc")
    assert len(protocol.train) == 174
    assert len(protocol.val) + len(protocol.test) == 26


def test_labelled_lists_of_spcl_add_scans_to_the_shorter_ones():
    """What each count adds, as the released code names it; _00 is ED, _01 is ES."""
    added = {
        "acdc": {1: "100_00", 2: "027_01", 4: "038_01 067_01", 8: "002_00 004_00 006_01 007_00"},
        "promise12": {3: "10 17 45", 5: "00 37", 7: "34 38"},
        "mmwhs": {1: "1003", 2: "1010"},
    }
    for dataset, steps in added.items():
        prefix = {"acdc": "patient", "promise12": "Case", "mmwhs": "ct_train_"}[dataset]
        protocol, so_far = load_protocol("spcl", dataset), set()
        for count, names_added in steps.items():
            for name in names_added.split():
                number, _, suffix = name.partition("_")
                so_far.add(Case(prefix + number, {"00": "ED", "01": "ES", "": ""}[suffix]))
            assert set(protocol.labelled[count]) == so_far


def test_labelled_counts_of_ssl4mis_are_nested():
    protocol = load_protocol("ssl4mis", "acdc")
    assert protocol.train == protocol.labelled[70]
    assert patients_of(protocol.labelled[3]) == ["patient099", "patient038", "patient050"]
    for count, cases in protocol.labelled.items():
        assert cases == protocol.train[: 2 * count]


def test_order_of_the_scans_has_no_influence():
    protocol, scans = load_protocol("ssl4mis", "acdc"), acdc_scans(ACDC)
    split = split_by_protocol(scans, protocol)
    random.Random(0).shuffle(scans)
    assert split_by_protocol(scans, protocol) == split
    assert names(split.labelled[1]) == ["patient099_frame01", "patient099_frame12"]


def test_missing_cases_are_named_and_their_counts_left_out():
    protocol = load_protocol("spcl", "acdc")
    there = [p for p in ACDC if p not in ("patient038", "patient041")]
    scans = [s for s in acdc_scans(there) if s.name != "patient007_frame12"]
    split = split_by_protocol(scans, protocol)
    lost = ["patient007 ES", "patient038 ED", "patient038 ES", "patient041 ED", "patient041 ES"]
    assert split.missing == lost
    assert set(split.labelled) == {1, 2}  # patient007's ED is labelled, its ES is not needed
    assert split.incomplete == {4: "lacks patient038 ES", 8: "lacks patient038 ES"}
    assert len(split.train) == 174 - 3
    assert len(split.val) == 8 - 2


def test_data_without_phases():
    protocol = load_protocol("spcl", "promise12")
    scans = [Scan(f"Case{n:02d}", f"Case{n:02d}", None, Path(), Path()) for n in range(50)]
    split = split_by_protocol(scans, protocol)
    assert (len(split.train), len(split.val), len(split.test)) == (40, 3, 7)
    assert names(split.labelled[3]) == ["Case10", "Case17", "Case45"]
    assert split.missing == split.unused == []


def test_a_case_without_a_phase_takes_all_of_its_patient():
    protocol = dataclasses.replace(
        load_protocol("spcl", "promise12"), train=(Case("a"),), val=(), test=(), labelled={}
    )
    split = split_by_protocol(acdc_scans(["a"])[::-1], protocol)
    assert names(split.train) == ["a_frame01", "a_frame12"]


def test_what_is_refused():
    with pytest.raises(ValueError, match="protocol must be one of chaitanya, spcl, ssl4mis for"):
        load_protocol("spsl", "acdc")
    with pytest.raises(ValueError, match="protocol must be one of none for kits"):
        load_protocol("spcl", "kits")
    with pytest.raises(ValueError, match=r"pick must be in 0\.\.0 for spcl of acdc, got -1"):
        load_protocol("spcl", "acdc", pick=-1)
    with pytest.raises(ValueError, match=r"scans must hold cases of protocol 'spcl' \(patient002"):
        split_by_protocol(acdc_scans(["p1"]), load_protocol("spcl", "acdc"))


def test_a_patient_on_two_sides_is_refused():
    ed, es, other = Case("p1", "ED"), Case("p1", "ES"), Case("p2", "ED")
    exact = {"train": True}
    with pytest.raises(ValueError, match="p1 must be in one set of protocol 'x', got train and"):
        Protocol("x", "acdc", "here", "scan", exact, (ed, other), (), (es,), {})
    with pytest.raises(ValueError, match=r"must be training cases .* got p1 ES for 1 labelled"):
        Protocol("x", "acdc", "here", "scan", exact, (ed,), (other,), (), {1: (es,)})


@pytest.fixture
def real_acdc(real_data):
    return find_data(real_data / "acdc").scans


def test_labelled_slices_of_real_acdc(real_acdc):
    """The benchmark says 68 labelled slices for 3 patients and 136 for 7."""
    split = split_by_protocol(real_acdc, load_protocol("ssl4mis", "acdc"))
    for count, num_slices in ((3, 68), (7, 136)):
        assert sum(len(read_image(scan.image)[0]) for scan in split.labelled[count]) == num_slices


def test_real_acdc_in_every_protocol(real_acdc):
    there = {scan.patient for scan in real_acdc}
    for name in protocol_names("acdc"):
        protocol = load_protocol(name, "acdc")
        split = split_by_protocol(real_acdc, protocol)
        everyone = {*protocol.train, *protocol.val, *protocol.test}
        assert set(split.missing) == {str(case) for case in everyone if case.patient not in there}
        assert set(split.labelled) | set(split.incomplete) == set(protocol.labelled)
    spcl = split_by_protocol(real_acdc, load_protocol("spcl", "acdc"))
    assert spcl.incomplete == {}
