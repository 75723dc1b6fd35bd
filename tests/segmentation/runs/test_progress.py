"""The time that is left of a long work, from the steps so far."""

import pytest

from spcl_fast.segmentation.runs.progress import progress_bar, time_left


@pytest.mark.parametrize(
    ("seconds", "done", "ahead", "text"),
    [
        (10.0, 5, 20, ", 40 s left"),
        (10.0, 5, 100, ", 3 min left"),
        (10.0, 1, 3600, ", 10 h left"),
        (10.0, 0, 5, ""),  # nothing to go by
        (10.0, 5, 0, ""),
    ],
)
def test_time_left(seconds, done, ahead, text):
    assert time_left(seconds, done, ahead) == text


def test_steps_before_a_resumption_took_no_time(capsys):
    with progress_bar("train", 10, start=4) as show:
        show(4, "loss 1")
    assert capsys.readouterr().err == "train 4/10 loss 1\n"
