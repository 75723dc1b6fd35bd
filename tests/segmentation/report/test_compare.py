"""What the page says about scratch and pre-training: pairs, intervals and honest wording."""

from pathlib import Path

import numpy as np
import pytest

from spcl_fast.segmentation.evaluate.paired import paired_difference
from spcl_fast.segmentation.evaluate.record import Evaluation, ScanScores
from spcl_fast.segmentation.report import compare
from spcl_fast.segmentation.report.runs import RunRecord


def record(name, source, labelled, dice, *, settings=None):
    """Return an evaluated run with the Dice of its scans, one class."""
    scans = {scan: ScanScores(scan[0], {"LV": value}) for scan, value in dice.items()}
    run = RunRecord(Path(name), name, "finetune", {"finetune": settings or {}}, "")
    run.evaluation = Evaluation(("LV",), scans, (labelled,), 2, source)
    return run


def pairs(*gains, base=0.5):
    """Return a scratch and a pre-trained run for each gain."""
    runs = []
    for pick, gain in enumerate(gains):
        runs.append(record(f"s{pick}", None, f"scan{pick}", {"t": base}))
        runs.append(record(f"p{pick}", "pre", f"scan{pick}", {"t": base + gain}))
    return runs


def test_pairs_use_the_scans_of_both():
    runs = [
        record("s", None, "a", {"t1": 0.2, "t2": 0.4}),
        record("p", "pre", "a", {"t2": 0.5, "t3": 0.9}),
        record("other", "pre", "b", {"t2": 1.0}),
    ]
    (pair,) = compare.pairs_of(runs[:1], runs[1:])
    assert (pair.dice_scratch, pair.dice_other, pair.num_scans) == (0.4, 0.5, 1)


def test_seeds_of_one_pair_are_averaged():
    runs = [record(f"s{k}", None, "a", {"t": v}) for k, v in enumerate((0.2, 0.4))]
    runs.append(record("p", "pre", "a", {"t": 0.5}))
    (pair,) = compare.pairs_of(runs[:2], runs[2:])
    assert pair.gain == pytest.approx(0.2)


def test_gain_of_pairs():
    """Labelled scans and patients are resampled, of different patients the labelled scans alone."""
    dice = {"a_1": 0.2, "a_2": 0.4, "b_1": 0.6}
    runs = [record(f"s{k}", None, f"scan{k}", dice) for k in range(2)]
    gains = ({"a_1": 0.2, "a_2": 0.4, "b_1": 0.8}, {"a_1": 0.5, "a_2": 0.7, "b_1": 0.6})
    runs += [record(f"p{k}", "pre", f"scan{k}", after) for k, after in enumerate(gains)]
    chosen = compare.pairs_of(runs[:2], runs[2:])
    assert [pair.gain for pair in chosen] == pytest.approx([0.1, 0.15])  # a patient counts once
    gain = compare.gain_of(chosen)
    by_hand = paired_difference(np.array([[0.0, 0.2], [0.3, 0.0]]))
    assert gain.by_run == pytest.approx(by_hand.by_run)
    assert gain.interval_95 == pytest.approx(by_hand.interval_95)
    assert gain.interval_95 == pytest.approx((0.0, 0.3))
    other = compare.pairs_of(
        [record("s", None, "c", {"z_1": 0.0})], [record("p", "pre", "c", {"z_1": 0.5})]
    )
    assert compare.gain_of([*chosen, *other]).interval_95 == pytest.approx((0.1, 0.5))


# sure gain, the same of few pairs, likely gain, sure loss, likely loss, no change
@pytest.mark.parametrize(
    ("gains", "start", "end"),
    [
        ((0.10, 0.11, 0.12) * 2, "Pre-training helped", "same labelled scans)."),
        (
            (0.10, 0.11, 0.12),
            "Pre-training gave more, in too few pairs of runs to tell it from",
            "",
        ),
        ((0.30, -0.10, 0.05), "Pre-training gave more on average, but the interval holds zero", ""),
        ((-0.10, -0.11, -0.12), "Pre-training did not help", "same labelled scans)."),
        ((-0.30, 0.10, -0.05), "Pre-training did not help", "and the interval holds zero."),
        ((0.0, 0.0), "Pre-training did not help", "and the interval holds zero."),
    ],
)
def test_wording_follows_the_measurement(gains, start, end):
    (sentence,) = compare.verdict(pairs(*gains))
    assert sentence.startswith(start)
    assert sentence.endswith(end)
    up = sum(gain > 0 for gain in gains)
    assert f"{sum(gains) / len(gains):+.3f}" in sentence
    assert f"up in {up} of {len(gains)} pairs" in sentence


@pytest.mark.parametrize(("gain", "word"), [(0.2, "gave more"), (-0.2, "did not help")])
def test_one_pair_is_called_chance(gain, word):
    (sentence,) = compare.verdict(pairs(gain))
    assert sentence.startswith(f"Pre-training {word} in one pair of runs")
    assert sentence.endswith("one pair cannot tell this from chance.")


def test_nothing_to_compare():
    scratch, pretrained = record("s", None, "a", {"t": 0.5}), record("p", "pre", "b", {"t": 0.6})
    assert "no Dice to report" in compare.verdict([])[0]
    assert "0.500 (one run); no other run" in compare.verdict([scratch])[0]
    assert "0.600 (one run); no run from scratch" in compare.verdict([pretrained])[0]
    assert "does not tell which is better" in compare.verdict([scratch, pretrained])[0]


def test_unlabelled_terms_are_an_arm_of_their_own():
    semi = {"contrast": 0.0, "teacher": 0.1, "teacher_decay": 0.99, "num_scans": 3, "loss": {}}
    settings = {"semi": semi}
    runs = pairs(0.1)
    runs.append(record("m", None, "scan0", {"t": 0.4}, settings=settings))
    assert list(compare.arms(runs)) == [
        "from scratch",
        "pre-trained (pre)",
        "from scratch + mean teacher",
    ]
    sentences = compare.verdict(runs)
    assert sentences[1].startswith("From scratch + mean teacher did not help in one pair")


def test_the_median_pair_is_shown():
    chosen, how = compare.shown_runs(pairs(0.3, -0.2, 0.1))
    assert [run.name for run in chosen] == ["s2", "p2"]
    assert how == "the median of 3 pairs with the same labelled scans"
    chosen, _ = compare.shown_runs([record(f"s{v}", None, "a", {"t": v}) for v in (0.1, 0.9, 0.3)])
    assert [run.name for run in chosen] == ["s0.3"]
