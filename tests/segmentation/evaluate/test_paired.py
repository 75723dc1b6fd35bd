"""Paired differences: values by hand, the axes that are resampled, and text."""

import numpy as np
import pytest

from spcl_fast.segmentation.evaluate import paired
from spcl_fast.segmentation.evaluate.paired import (
    PairedDifference,
    paired_difference,
    paired_evaluations,
)
from spcl_fast.segmentation.evaluate.record import Evaluation, ScanScores


def evaluation(**dice):
    """Return an evaluation of one class with the Dice of one scan of each patient."""
    scans = {f"{p}_1": ScanScores(p, {"x": value}) for p, value in dice.items()}
    return Evaluation(("x",), scans)


def test_paired_difference_by_hand():
    difference = np.array([[0.1, 0.3], [0.2, 0.2]])
    pair = paired_difference(difference)
    assert pair.mean == pytest.approx(0.2)
    assert pair.by_run == pytest.approx([0.2, 0.2])
    assert (pair.up, pair.pairs) == (2, 2)
    assert 0.1 <= pair.interval_95[0] <= 0.2 <= pair.interval_95[1] <= 0.3
    # seeds that disagree: how many scans were picked for each takes nothing off the interval
    many = np.repeat([[[0.0]], [[0.4]]], 20, axis=1)
    assert paired_difference(many).interval_95 == pytest.approx([0.0, 0.4])
    assert (paired_difference(many).up, paired_difference(many).pairs) == (20, 40)
    assert paired_difference(many.reshape(40, 1)).interval_95[1] < 0.3


# patients alone, runs and patients, seeds and scans and patients, runs of one patient
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (5, 1)])
def test_bootstrap_draws_one_axis_after_the_other(shape, monkeypatch):
    """The draws, and with them the intervals in benchmarks/results, are those of this loop."""
    difference = np.random.default_rng(1).normal(size=shape)
    rng = np.random.default_rng(0)
    means = []
    for _ in range(paired.BOOTSTRAPS):
        drawn = difference
        for axis, size in enumerate(shape):
            drawn = drawn.take(rng.integers(size, size=size), axis)
        means.append(drawn.mean())
    low, high = np.percentile(means, [2.5, 97.5])
    assert paired_difference(difference).interval_95 == (low, high)
    monkeypatch.setattr(paired, "DRAWN_AT_ONCE", 1000)
    assert paired_difference(difference).interval_95 == (low, high)


def test_evaluations_are_paired_by_patient():
    ours = [evaluation(a=0.4, b=0.8), evaluation(b=0.9, a=0.5)]
    reference = [evaluation(b=0.6, a=0.4), evaluation(a=0.4, b=0.6)]
    pair = paired_evaluations(ours, reference)
    assert pair.by_run == pytest.approx([0.1, 0.2])
    assert pair == paired_difference(np.subtract([[0.4, 0.8], [0.5, 0.9]], [[0.4, 0.6]] * 2))
    with pytest.raises(ValueError, match="the same test patients, got a, b and a, c"):
        paired_evaluations(ours[:1], [evaluation(a=0.4, c=0.6)])


def test_text_and_json():
    pair = PairedDifference(0.0214, (-0.0006, 0.0431), (0.01, 0.0328), 2, 2)
    assert (pair.mean_text, pair.interval_text) == ("+0.021", "-0.001 to +0.043")
    assert pair.percent_text == "+2.1 (-0.1 to +4.3)"
    assert PairedDifference.from_json(pair.to_json()) == pair
    assert list(pair.to_json()) == ["mean", "interval_95", "by_run", "up", "pairs"]
    earlier = {"mean": 0.0214, "interval_95": [-0.0006, 0.0431], "by_run": [0.01, 0.0328], "up": 2}
    assert PairedDifference.from_json(earlier) == pair
    for damaged in (None, [], {"mean": 0.1}, {"mean": None, "interval_95": [0, 1]}):
        assert PairedDifference.from_json(damaged) is None
