"""Comparing fine-tuned runs: arms, pairs with the same labelled scans, and what they show.

An arm is the set of runs with one starting point (scratch, or a pre-training run) and one training
(on labelled scans alone, or with terms for unlabelled ones). Which scans are labelled moves Dice
more than most methods do, so every arm is compared with plain training from scratch in pairs of
runs with the same labelled scans, on the test scans that both evaluated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spcl_fast.segmentation.evaluate.json_values import is_number
from spcl_fast.segmentation.evaluate.paired import PairedDifference, paired_difference
from spcl_fast.segmentation.report.runs import RunRecord

SCRATCH = "from scratch"
TERM_NAMES = {"teacher": "mean teacher"}  # of `semi`, where the name alone says too little
SETTINGS = ("teacher_decay", "teacher_ramp", "num_scans")  # of `semi`, other than weights
MIN_PAIRS = 6  # chance alone gives n pairs the same sign with probability 2^(1 - n): below 5 %
SEED = re.compile(r"^\d+-")  # before the name of a run that is one of several seeds


@dataclass(frozen=True)
class RunPair:
    """Runs of two arms with the same labelled scans.

    Attributes:
        labelled_scans: Their labelled scans.
        scratch: Runs from scratch; more than one if seeds were repeated.
        other: Runs of the other arm.
        scratch_by_patient: Mean Dice of each test patient over runs, classes and the scans that all
            runs evaluated.
        other_by_patient: The same of the other arm, of the same patients.
        num_scans: Test scans that all runs evaluated.
    """

    labelled_scans: tuple[str, ...]
    scratch: tuple[RunRecord, ...]
    other: tuple[RunRecord, ...]
    scratch_by_patient: Mapping[str, float]
    other_by_patient: Mapping[str, float]
    num_scans: int

    @property
    def dice_scratch(self) -> float:
        """Mean Dice from scratch over the test patients."""
        return float(np.mean(list(self.scratch_by_patient.values())))

    @property
    def dice_other(self) -> float:
        """Mean Dice of the other arm over the test patients."""
        return float(np.mean(list(self.other_by_patient.values())))

    @property
    def gain(self) -> float:
        """Dice of the other arm minus that from scratch."""
        return self.dice_other - self.dice_scratch

    @property
    def gain_by_patient(self) -> list[float]:
        """The same of each test patient."""
        return [self.other_by_patient[p] - dice for p, dice in self.scratch_by_patient.items()]


def arm_name(run: RunRecord) -> str:
    """Return the arm of an evaluated run."""
    source = run.scores.initialised_from
    start = SCRATCH if source is None else f"pre-trained ({SEED.sub('', source)})"
    if run.scores.pretrained_patients:
        start += ", test patients seen"
    settings = run.config.get("finetune")
    semi = settings.get("semi") if isinstance(settings, dict) else None
    for key, weight in (semi if isinstance(semi, dict) else {}).items():
        if key not in SETTINGS and is_number(weight) and weight > 0:
            start += f" + {TERM_NAMES.get(key, key.replace('_', ' '))}"
    return start


def arms(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Return the evaluated fine-tuning runs by arm, scratch first."""
    found: dict[str, list[RunRecord]] = {SCRATCH: []}
    for run in runs:
        if run.evaluation is not None:
            found.setdefault(arm_name(run), []).append(run)
    return {name: members for name, members in found.items() if members}


def pairs_of(scratch: Sequence[RunRecord], other: Sequence[RunRecord]) -> list[RunPair]:
    """Return one `RunPair` for each set of labelled scans that both arms have."""
    keys = {run.labelled_scans for run in scratch} & {run.labelled_scans for run in other}
    pairs = []
    for key in sorted(keys):
        members = [tuple(r for r in arm if r.labelled_scans == key) for arm in (scratch, other)]
        scans = common_scans([*members[0], *members[1]])
        dice = [_dice_by_patient(arm, scans) for arm in members]
        if all(dice):
            pairs.append(RunPair(key, members[0], members[1], dice[0], dice[1], len(scans)))
    return pairs


def _dice_by_patient(runs: Sequence[RunRecord], scans: Collection[str]) -> dict[str, float]:
    """Return the mean over runs of the Dice of each patient of some scans."""
    rows = [run.scores.dice_by_patient(scans) for run in runs]
    known = [patient for patient in rows[0] if all(patient in row for row in rows)]
    return {patient: float(np.mean([row[patient] for row in rows])) for patient in known}


def _hd95_text(arms: Mapping[str, Sequence[RunRecord]]) -> str:
    """Return ", HD95 8.1 mm from scratch, 7.5 mm ..."; nothing where a distance is not known."""
    means = {
        name: float(np.mean([run.scores.hd95_mm_mean for run in runs]))
        for name, runs in arms.items()
    }
    if not all(map(math.isfinite, means.values())):
        return ""
    return ", HD95 " + ", ".join(f"{value:.1f} mm {name}".strip() for name, value in means.items())


def gain_of(pairs: Sequence[RunPair]) -> PairedDifference:
    """Return the gain of Dice over pairs, resampling labelled scans and test patients.

    Where the pairs were tested on different patients, labelled scans alone are resampled.
    """
    if all(list(p.scratch_by_patient) == list(pairs[0].scratch_by_patient) for p in pairs):
        return paired_difference(np.array([pair.gain_by_patient for pair in pairs]))
    return paired_difference(np.array([[pair.gain] for pair in pairs]))


def common_scans(runs: Sequence[RunRecord]) -> list[str]:
    """Return the names of the test scans that every run evaluated, sorted."""
    sets = [set(run.scores.scans) for run in runs]
    return sorted(set.intersection(*sets)) if sets else []


def shown_runs(runs: Sequence[RunRecord]) -> tuple[list[RunRecord], str]:
    """Choose the runs whose predictions are drawn, and say how.

    The pair with the median gain where there are pairs, else the median run of each arm: neither
    the best nor the worst case is picked.
    """
    by_arm = arms(runs)
    scratch = by_arm.get(SCRATCH, [])
    pairs = [p for a, members in by_arm.items() if a != SCRATCH for p in pairs_of(scratch, members)]
    if pairs:
        pair = sorted(pairs, key=lambda p: p.gain)[(len(pairs) - 1) // 2]
        how = "the only pair of runs" if len(pairs) == 1 else f"the median of {len(pairs)} pairs"
        return [pair.scratch[0], pair.other[0]], f"{how} with the same labelled scans"
    chosen = []
    for members in by_arm.values():
        ordered = sorted(members, key=lambda run: run.scores.dice_mean)
        chosen.append(ordered[(len(ordered) - 1) // 2])
    return chosen, "the run with the median Dice of each starting point"


def verdict(runs: Sequence[RunRecord]) -> list[str]:
    """Return the main result, one sentence for each arm, worded by what was measured."""
    by_arm = arms(runs)
    if not by_arm:
        return ["No fine-tuning run has been evaluated yet, so there is no Dice to report."]
    scratch = by_arm.get(SCRATCH, [])
    others = {name: members for name, members in by_arm.items() if name != SCRATCH}
    if not others:
        alone = _hd95_text({"": scratch})
        return [f"{_arm_sentence(SCRATCH, scratch)}{alone}; no other run to compare it with."]
    if not scratch:
        return [
            f"{_arm_sentence(name, members)}{_hd95_text({'': members})}; no run from scratch to "
            "compare it with."
            for name, members in others.items()
        ]
    return [_comparison(scratch, name, members) for name, members in others.items()]


def _arm_sentence(name: str, members: Sequence[RunRecord]) -> str:
    values = [run.scores.dice_mean for run in members]
    runs = "one run" if len(values) == 1 else f"{len(values)} runs"
    return f"Mean 3-D Dice {name} is {np.mean(values):.3f} ({runs})"


def _comparison(scratch: Sequence[RunRecord], name: str, members: Sequence[RunRecord]) -> str:
    pairs = pairs_of(scratch, members)
    if not pairs:
        other = _arm_sentence(name, members)
        return (
            f"{_arm_sentence(SCRATCH, scratch)}. {other}. No two of them share labelled and test "
            "scans, so the difference does not tell which is better."
        )
    is_plain = name.startswith("pre-trained") and "+" not in name.rpartition(")")[2]
    subject = "Pre-training" if is_plain else name.capitalize()
    before = float(np.mean([pair.dice_scratch for pair in pairs]))
    after = float(np.mean([pair.dice_other for pair in pairs]))
    change = f"mean 3-D Dice {before:.3f} from scratch, {after:.3f} {name}, {after - before:+.3f}"
    both = {SCRATCH: [run for pair in pairs for run in pair.scratch]}
    both[name] = [run for pair in pairs for run in pair.other]
    hd95 = _hd95_text(both)
    if len(pairs) == 1:
        start = "gave more" if after > before else "did not help"
        facts = f"{change}{hd95}; one pair cannot tell this from chance"
        return f"{subject} {start} in one pair of runs: {facts}."
    gain = gain_of(pairs)
    low, high = gain.interval_95
    facts = (
        f"{change} (95 % interval {gain.interval_text}; up in {gain.up} of {gain.pairs} pairs "
        f"with the same labelled scans){hd95}"
    )
    if low > 0 and len(pairs) < MIN_PAIRS:
        return f"{subject} gave more, in too few pairs of runs to tell it from chance: {facts}."
    if low > 0:
        return f"{subject} helped: {facts}."
    if gain.mean <= 0:
        extra = "" if high < 0 else ", and the interval holds zero"
        return f"{subject} did not help: {facts}{extra}."
    return f"{subject} gave more on average, but the interval holds zero: {facts}."
