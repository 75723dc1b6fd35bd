"""Cross-validation: folds outside the test set, and the segmenters of all folds as one."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch

from spcl_fast.cli import main
from spcl_fast.segmentation.commands.evaluate import EvaluateConfig, evaluate
from spcl_fast.segmentation.commands.predict import PredictConfig, predict
from spcl_fast.segmentation.evaluate.record import read_evaluation
from spcl_fast.segmentation.finetune.loop import finetune
from spcl_fast.segmentation.networks import UNet
from spcl_fast.segmentation.runs.config import ConfigError
from spcl_fast.segmentation.runs.dataset import split_scans
from spcl_fast.segmentation.runs.run import read_metadata, save_weights


def names(scans):
    return {scan.name for scan in scans}


@pytest.mark.parametrize("protocol", ["random", "ssl4mis"])
def test_folds_divide_what_is_no_test_patient(data_config, protocol):
    data = replace(data_config, protocol=protocol, num_val=1)
    whole = split_scans(data)
    folds = [split_scans(replace(data, folds=2, fold=fold)) for fold in range(2)]
    for train, val, test in folds:
        assert names(test) == names(whole.test)
        assert not {s.patient for s in train} & {s.patient for s in val}
        assert names(train) | names(val) == names(whole.train) | names(whole.val)
    assert names(folds[0].val) == names(folds[1].train)
    assert names(folds[1].val) == names(folds[0].train)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"folds": 5, "fold": 5}, "fold must be in 0..4, got 5"),
        ({"folds": 1}, "folds must be 0 or at least 2, got 1"),
        ({"folds": -1}, "folds must be 0 or at least 2, got -1"),
        ({"folds": 5}, "folds must be in 2..4 patients with masks, got 5"),
    ],
)
def test_folds_that_cannot_be(data_config, values, problem):
    with pytest.raises(ValueError, match=problem):
        split_scans(replace(data_config, **values))


def random_segmenter(run, seed):
    """Give a run a network whose answers hold every class."""
    torch.manual_seed(seed)
    net = UNet(1, 4, 16)
    with torch.no_grad():
        for norm in (m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.momentum = 1.0
        net.out.bias -= net.train()(torch.rand(8, 1, 32, 32)).mean((0, 2, 3))
    file = run / "segmenter.safetensors"
    save_weights(file, net.state_dict(), read_metadata(file))


def test_the_folds_together(finetune_config, tmp_path):
    runs = [tmp_path / f"fold{fold}" for fold in range(2)]
    alike = replace(finetune_config.data, num_test=1, folds=2)
    for fold, run in enumerate(runs):
        data = replace(alike, fold=fold)
        finetune(replace(finetune_config, data=data, steps=1, val_every=9, out=run))
        random_segmenter(run, fold)
    out = tmp_path / "together"
    words = ["--device", "cpu", "--flips", "--largest-component", "--out", str(out)]
    assert main(["evaluate", "--run", *map(str, runs), *words]) == 0
    found = read_evaluation(out / "evaluation.json")
    scan = split_scans(alike).test[0]
    config = PredictConfig(tuple(runs), scan.image, tmp_path, flips=True, largest_component=True)
    labels, same = (
        np.asarray(nibabel.load(path).dataobj)
        for path in (*predict(config), out / found.scans[scan.name].prediction)
    )
    assert np.array_equal(labels, same)
    plain, flipped = (evaluate(EvaluateConfig(tuple(runs), flips=f)) for f in (False, True))
    one = evaluate(EvaluateConfig(runs[0]))
    assert len({each.dice_mean for each in (found, plain, flipped, one)}) == 4


def test_runs_with_other_test_scans(finetune_config, tmp_path):
    runs = [tmp_path / f"tests{count}" for count in (2, 1)]
    for run, count in zip(runs, (2, 1), strict=True):
        data = replace(finetune_config.data, num_test=count)
        finetune(replace(finetune_config, data=data, steps=1, val_every=9, out=run))
    with pytest.raises(ConfigError, match=r"with the same test scans, got .*tests2 and .*tests1"):
        evaluate(EvaluateConfig(tuple(runs)))
