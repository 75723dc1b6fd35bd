"""Scans without a mask: used for training without labels, and for nothing else."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from spcl_fast.segmentation.commands.evaluate import EvaluateConfig, evaluate
from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.finetune.loop import finetune
from spcl_fast.segmentation.pretrain.loop import pretrain
from spcl_fast.segmentation.runs.dataset import pick_labelled, split_scans, training_slices
from spcl_fast.segmentation.runs.run import read_weights


@pytest.fixture
def sparse(data_config, tmp_path):
    """The phantom without the masks of all training patients but one, and that one's scans."""
    data = replace(data_config, num_val=1)
    split = split_scans(data)
    one = split.train[0].patient
    root = tmp_path / "sparse"
    shutil.copytree(data.root, root)
    for scan in split.train:
        if scan.patient != one:
            (root / scan.mask.relative_to(data.root)).unlink()
    names = tuple(scan.name for scan in split.train if scan.patient == one)
    return replace(data, root=root, csv=root / "metadata.csv", cache=tmp_path / "cache"), names


def test_the_split_does_not_change(data_config, sparse):
    data, names = sparse
    whole, few = split_scans(replace(data_config, num_val=1)), split_scans(data)
    assert [[s.name for s in part] for part in few] == [[s.name for s in part] for part in whole]
    assert [scan.name for scan in few.train if scan.mask] == list(names)
    assert all(scan.mask for scan in [*few.val, *few.test])
    for pick in range(4):
        for index in pick_labelled(few.train, names=(), count=1, pick=pick):
            assert few.train[index].mask


def test_same_weights_as_with_masks_that_are_not_used(
    pretrain_config, finetune_config, data_config, sparse, tmp_path
):
    data, names = sparse
    weights = []
    for kind, one in (("whole", replace(data_config, num_val=1)), ("sparse", data)):
        before = replace(pretrain_config, data=one, out=tmp_path / kind / "pre", epochs=1)
        pretrain(before)
        semi = replace(finetune_config.semi, teacher=1.0, mixup=0.1, num_scans=2)
        after = replace(finetune_config, data=one, semi=semi, labelled=names, init=before.out)
        after = replace(after, out=tmp_path / kind / "fine", steps=3)
        scores = finetune(after)
        weights.append(
            read_weights(before.out / "encoder.safetensors")[0]
            | read_weights(after.out / "segmenter.safetensors")[0]
        )
        assert scores.labelled_scans == names
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_only_scans_with_masks_are_labelled_or_evaluated(finetune_config, sparse, capsys):
    data, names = sparse
    config = replace(finetune_config, data=data, steps=1, val_every=9)
    slices = training_slices(data, split_scans(data).train)
    other = next(scan.name for scan in slices.scans if scan.mask is None)
    with pytest.raises(DataError, match=f"labelled scans must have masks, got none of {other}"):
        finetune(replace(config, labelled=(names[0], other)))
    with pytest.raises(DataError, match="must be 1 to 2 training scans with masks, got 3"):
        finetune(replace(config, num_labelled=3))
    finetune(config)
    scores = evaluate(EvaluateConfig(config.out, root=data.root))
    said = capsys.readouterr().err
    assert other not in scores.scans
    assert f"left out, without a mask: {other}" in said
    assert len(scores.scans) == sum(1 for _ in data.root.rglob("*_gt.nii.gz"))
    for path in data.root.rglob("*_gt.nii.gz"):
        path.unlink()
    with pytest.raises(DataError, match="must hold scans with masks, got none"):
        evaluate(EvaluateConfig(config.out, root=data.root))


def test_pretraining_needs_no_mask(pretrain_config, sparse, tmp_path):
    data, _ = sparse
    for path in data.root.rglob("*_gt.nii.gz"):
        path.unlink()
    config = replace(pretrain_config, epochs=1, steps_per_epoch=1)
    with pytest.raises(ValueError, match=r"num_test must be in 0\.\.0 patients with masks, got 2"):
        pretrain(replace(config, data=data))
    pretrain(replace(config, data=replace(data, num_test=0, num_val=0)))
    rows = (config.out / "metrics.jsonl").read_text().splitlines()
    assert any(json.loads(row)["kind"] == "epoch" for row in rows)
