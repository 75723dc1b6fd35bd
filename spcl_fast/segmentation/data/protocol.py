"""Published splits of a data set: training, validation and test cases, and which are labelled.

A protocol is a file of names, ``protocols/<protocol>_<data set>.yaml``; each names its source, and
says in ``exact`` which of its lists are the source's own. Where a source does not give a list, the
file documents the rule that stands in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import NamedTuple

import yaml

from spcl_fast.segmentation.data.scan import Scan

SETS = ("train", "val", "test")


class Case(NamedTuple):
    """One scan of a protocol.

    Attributes:
        patient: Name of the patient, as in the data set.
        phase: Cardiac phase, or "" where the data set has none.
    """

    patient: str
    phase: str = ""

    def __str__(self) -> str:
        return f"{self.patient} {self.phase}".strip()


@dataclass(frozen=True)
class Protocol:
    """A published split: which cases are in which set.

    Attributes:
        name: Name of the protocol, such as "ssl4mis".
        dataset: Name of the data set, such as "acdc".
        source: Where the lists come from.
        unit: What `labelled` counts: "scan" or "patient".
        exact: For each of "train", "val", "test" and "labelled", whether the list is the source's.
        train: Training cases.
        val: Validation cases.
        test: Test cases.
        labelled: Labelled cases of each count, all of them training cases.
        pick: Which of the source's choices of labelled cases this is, from 0.
        num_picks: How many the source made, for the count with most.

    Raises:
        ValueError: A patient is in two sets, or a labelled case is not a training case.
    """

    name: str
    dataset: str
    source: str
    unit: str
    exact: Mapping[str, bool]
    train: tuple[Case, ...]
    val: tuple[Case, ...]
    test: tuple[Case, ...]
    labelled: Mapping[int, tuple[Case, ...]]
    pick: int = 0
    num_picks: int = 1

    def __post_init__(self) -> None:
        home: dict[str, str] = {}
        for which in SETS:
            for case in getattr(self, which):
                if home.setdefault(case.patient, which) != which:
                    raise ValueError(
                        f"{case.patient} must be in one set of protocol {self.name!r}, "
                        f"got {home[case.patient]} and {which}"
                    )
        for count, cases in self.labelled.items():
            if outside := set(cases) - set(self.train):
                raise ValueError(
                    f"labelled cases must be training cases of protocol {self.name!r}, "
                    f"got {min(outside)} for {count} labelled"
                )


@dataclass(frozen=True)
class ProtocolSplit:
    """The scans found for the cases of a protocol.

    Attributes:
        train: Training scans, in the order of the protocol.
        val: Validation scans.
        test: Test scans.
        labelled: Labelled scans of each count that is complete.
        missing: Every case of the protocol without a scan.
        incomplete: Why a count is not in `labelled`: its cases without a scan.
        unused: Names of the scans that the protocol does not mention.
    """

    train: list[Scan]
    val: list[Scan]
    test: list[Scan]
    labelled: dict[int, list[Scan]]
    missing: list[str]
    incomplete: dict[int, str]
    unused: list[str]


def protocol_names(dataset: str) -> list[str]:
    """Return the names of the protocols for a data set, sorted; none for an unknown data set."""
    ending = f"_{dataset}.yaml"
    files = (resources.files("spcl_fast.segmentation.data") / "protocols").iterdir()
    return sorted(file.name.removesuffix(ending) for file in files if file.name.endswith(ending))


def load_protocol(name: str, dataset: str, *, pick: int = 0) -> Protocol:
    """Read a protocol that comes with the package.

    Args:
        name: One of `protocol_names`.
        dataset: Name of the data set, such as "acdc".
        pick: Which of the source's choices of labelled cases; a count for which the source made
            fewer choices is left out of `Protocol.labelled`.

    Raises:
        ValueError: There is no such protocol, or the source made no such pick.
    """
    names = protocol_names(dataset)
    if name not in names:
        known = ", ".join(names) or "none"
        raise ValueError(f"protocol must be one of {known} for {dataset}, got {name!r}")
    file = resources.files("spcl_fast.segmentation.data") / "protocols" / f"{name}_{dataset}.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    phases = content.get("phases", [""])
    picks = {
        count: [_cases(one, phases) for one in choices]
        for count, choices in content.get("labelled", {}).items()
    }
    for count in content.get("labelled_first", []):
        picks[count] = [_cases(content["train"][:count], phases)]
    num_picks = max(map(len, picks.values()))
    if not 0 <= pick < num_picks:
        raise ValueError(f"pick must be in 0..{num_picks - 1} for {name} of {dataset}, got {pick}")
    train, val, test = (_cases(content[which], phases) for which in SETS)
    return Protocol(
        name=name,
        dataset=dataset,
        source=content["source"],
        unit=content["unit"],
        exact=content["exact"],
        train=train,
        val=val,
        test=test,
        labelled={count: choices[pick] for count, choices in picks.items() if pick < len(choices)},
        pick=pick,
        num_picks=num_picks,
    )


def _cases(names: Iterable[str], phases: Sequence[str]) -> tuple[Case, ...]:
    """Turn "patient PHASE" into that case, and "patient" into one case per phase."""
    cases: list[Case] = []
    for name in names:
        patient, _, phase = name.partition(" ")
        cases += [Case(patient, one) for one in ([phase] if phase else phases)]
    return tuple(cases)


def split_by_protocol(scans: Sequence[Scan], protocol: Protocol) -> ProtocolSplit:
    """Split scans as a protocol does; missing cases are listed, never silently skipped.

    Args:
        scans: Scans of the protocol's data set; their order has no influence.
        protocol: The split. A case without a phase takes every scan of its patient.

    Returns:
        The scans of each set, the missing cases, and the scans the protocol does not mention.

    Raises:
        ValueError: No scan is in the protocol.
    """
    by_case: dict[Case, list[Scan]] = {}
    for scan in sorted(scans, key=lambda scan: scan.name):
        by_case.setdefault(Case(scan.patient, scan.phase or ""), []).append(scan)
        if scan.phase:
            by_case.setdefault(Case(scan.patient), []).append(scan)

    def found(cases: Iterable[Case]) -> list[Scan]:
        return [scan for case in cases for scan in by_case.get(case, [])]

    everyone = [*protocol.train, *protocol.val, *protocol.test]
    used = {scan.name for scan in found(everyone)}
    if not used:
        some = ", ".join(map(str, everyone[:3]))
        raise ValueError(
            f"scans must hold cases of protocol {protocol.name!r} ({some}, ...), got none of them"
        )
    incomplete = {
        count: "lacks " + ", ".join(str(case) for case in cases if case not in by_case)
        for count, cases in protocol.labelled.items()
        if any(case not in by_case for case in cases)
    }
    return ProtocolSplit(
        train=found(protocol.train),
        val=found(protocol.val),
        test=found(protocol.test),
        labelled={n: found(c) for n, c in protocol.labelled.items() if n not in incomplete},
        missing=[str(case) for case in everyone if case not in by_case],
        incomplete=incomplete,
        unused=sorted(scan.name for scan in scans if scan.name not in used),
    )
