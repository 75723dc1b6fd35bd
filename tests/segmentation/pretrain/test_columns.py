"""Columns of numbers as meta-labels: bins and windows of the loss."""

import csv
from dataclasses import replace

import pytest

from spcl_fast.segmentation.pretrain.contrast import label_columns
from spcl_fast.segmentation.pretrain.loop import pretrain
from spcl_fast.segmentation.pretrain.loss_config import LossConfig
from spcl_fast.segmentation.runs.dataset import all_scans, training_slices
from spcl_fast.segmentation.runs.run import read_log

AGES = range(30, 90)


@pytest.fixture
def aged(data_config, tmp_path):
    """The phantom with an age for each slice of each scan but the first."""
    path = tmp_path / "ages.csv"
    scans = all_scans(data_config)[1:]
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["scan", "slice", "age"])
        for k, scan in enumerate(scans):
            table.writerows([scan.name, place, AGES[5 * k + place]] for place in range(5))
    return replace(data_config, csv=path)


def test_ages_need_bins_or_a_window(aged, pretrain_config):
    slices = training_slices(aged, all_scans(aged))
    with pytest.raises(ValueError, match=r"age holds 55 different numbers: give bins or a window"):
        label_columns(slices, LossConfig(labels=("age",)))
    bins = label_columns(slices, LossConfig(labels=("age",), bins=("age=3",)))["age"]
    assert bins.unique().tolist() == [-1, 0, 1, 2]
    each = label_columns(slices, LossConfig(labels=("age",), bins=("age=each",)))["age"]
    assert len(each.unique()) == 56
    loss = replace(pretrain_config.loss, labels=("age",), windows=("age=10",))
    years = label_columns(slices, loss)["age"]
    assert years[years >= 0].sort().values.tolist() == list(range(55))
    config = replace(pretrain_config, data=replace(aged, num_val=0), loss=loss, epochs=1)
    row = read_log(pretrain(config).parent / "metrics.jsonl")[0]
    assert 0 < row["num_anchors"] < row["num_rows"]  # slices without an age are no anchors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": ("age",)}, r"bins must be NAME=VALUE, each name once, got age"),
        ({"bins": ("age=3", "age=4")}, r"bins must be NAME=VALUE, each name once"),
        ({"bins": ("bmi=3",)}, r"must be of a column in labels \(age, patient\)"),
        ({"bins": ("patient=3",)}, r"must be of a column in labels"),
        ({"bins": ("age=3",), "windows": ("age=3",)}, r"one of both, got age"),
        ({"windows": ("age=x",)}, r"windows must be numbers of at least 0, got age=x"),
        ({"windows": ("age=-1",)}, r"windows must be numbers of at least 0, got age=-1"),
    ],
)
def test_bins_and_windows_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(labels=("age", "patient"), **options)
