"""Fine-tuning: it learns, starts from an encoder, resumes bitwise, evaluates and predicts."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from spcl_fast.segmentation.commands.evaluate import EvaluateConfig, evaluate
from spcl_fast.segmentation.commands.predict import PredictConfig, predict
from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.find import find_data
from spcl_fast.segmentation.data.volume import read_scan
from spcl_fast.segmentation.evaluate.metrics import dice_per_class
from spcl_fast.segmentation.evaluate.scans import segment_volume
from spcl_fast.segmentation.finetune import loop as module
from spcl_fast.segmentation.finetune import step as finetuning
from spcl_fast.segmentation.finetune.loop import finetune
from spcl_fast.segmentation.finetune.semi.config import TERMS, SemiConfig
from spcl_fast.segmentation.finetune.supervised import supervised_loss
from spcl_fast.segmentation.networks import UNet
from spcl_fast.segmentation.pretrain.loop import pretrain
from spcl_fast.segmentation.pretrain.loss_config import LossConfig
from spcl_fast.segmentation.runs.config import ConfigError
from spcl_fast.segmentation.runs.dataset import pick_labelled, split_scans
from spcl_fast.segmentation.runs.network import load_encoder, load_segmenter
from spcl_fast.segmentation.runs.optim import OptimConfig
from spcl_fast.segmentation.runs.run import CheckpointError, read_log


def test_evaluation_and_predictions(finetune_config):
    result = finetune(finetune_config)
    out = finetune_config.out
    assert json.loads((out / "evaluation.json").read_text()) == result.to_json()
    split = split_scans(finetune_config.data)
    assert set(result.scans) == {scan.name for scan in split.test}
    assert result.labelled_scans[0] in {scan.name for scan in split.train}
    for scan in split.test:
        scores = result.scans[scan.name]
        prediction = nibabel.load(out / scores.prediction)
        truth = nibabel.load(scan.mask)
        assert prediction.shape == truth.shape
        assert np.array_equal(prediction.affine, truth.affine)
        label = torch.from_numpy(np.asarray(prediction.dataobj).T.astype(np.int64))
        dice = dice_per_class(label, torch.from_numpy(read_scan(scan).mask), 4)
        assert list(scores.dice.values()) == pytest.approx(dice)
    means = [np.mean([s.dice[c] for s in result.scans.values()]) for c in ("RV", "MYO", "LV")]
    assert result.dice_mean == pytest.approx(np.mean(means))
    kinds = [(r["kind"], r["step"]) for r in read_log(out / "metrics.jsonl")]
    assert kinds.count(("val", 3)) == kinds.count(("val", 6)) == 1


def test_it_learns_the_labelled_scan(finetune_config):
    optim = OptimConfig(name="adamw", lr=2e-2)
    config = replace(finetune_config, steps=60, val_every=60, save_every=60, optim=optim)
    finetune(config)
    losses = [r["loss"] for r in read_log(config.out / "metrics.jsonl") if r["kind"] == "step"]
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])


# supervised; every term at once
@pytest.mark.usefixtures("small_discriminator")
@pytest.mark.parametrize("semi", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_interrupted_run_ends_with_the_same_weights(finetune_config, tmp_path, monkeypatch, semi):
    config = finetune_config
    if semi:
        loss = LossConfig(projector_batch_norm=True)
        weights = dict.fromkeys(TERMS, 0.1)
        config = replace(config, semi=SemiConfig(**weights, loss=loss, num_scans=2))
    finetune(replace(config, out=tmp_path / "whole"))
    calls = 0

    def stop_at_the_sixth(*args):
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return supervised_loss(*args)

    with monkeypatch.context() as patched:
        patched.setattr(finetuning, "supervised_loss", stop_at_the_sixth)
        with pytest.raises(KeyboardInterrupt):
            finetune(config)
    finetune(config, resume=True)
    whole = load_file(tmp_path / "whole" / "segmenter.safetensors")
    for name, value in load_file(config.out / "segmenter.safetensors").items():
        assert torch.equal(value, whole[name]), name


def test_the_best_point_of_validation_is_selected(finetune_config, tmp_path, monkeypatch):
    scores = {3: 0.5, 6: 0.4, 9: 0.7, 12: 0.6}  # by step: the third point is the best
    weights = {}

    def told(model, slices, absent):
        step = 3 * (len(weights) + 1)
        weights[step] = {name: x.clone() for name, x in model.state_dict().items()}
        return {"LV": scores[step]}

    monkeypatch.setattr(module, "slice_dice", told)
    config = replace(finetune_config, steps=12, select="best", save_every=6)
    finetune(replace(config, out=tmp_path / "whole"))
    saved = load_file(tmp_path / "whole" / "segmenter.safetensors")
    assert all(torch.equal(saved[name], x) for name, x in weights[9].items())
    weights.clear()
    finetune(replace(config, out=tmp_path / "last", select="last"))
    saved = load_file(tmp_path / "last" / "segmenter.safetensors")
    assert all(torch.equal(saved[name], x) for name, x in weights[12].items())
    with pytest.raises(ConfigError, match="select must be last without a point of validation"):
        finetune(replace(config, out=tmp_path / "none", val_every=13))
    state = torch.load(tmp_path / "whole" / "state.pt", weights_only=True)
    assert state["best"]["dice"] == 0.7  # a resumed run would select it too


def test_pretrained_encoder_is_used_and_checked(pretrain_config, finetune_config, tmp_path, capsys):
    path = pretrain(replace(pretrain_config, epochs=1))
    model = UNet(1, 4, 16)
    load_encoder(model, path.parent, finetune_config.model)
    assert all(torch.equal(model.encoder.state_dict()[k], v) for k, v in load_file(path).items())
    with pytest.raises(
        ConfigError, match=r"test or validation patients, got patient\d+: split the"
    ):
        finetune(replace(finetune_config, init=path.parent))  # the validation patient
    assert "warning: pre-trained on" not in capsys.readouterr().err
    data = finetune_config.data
    coarse = replace(data, grid=replace(data.grid, spacing_mm=2 * data.grid.spacing_mm))
    with pytest.raises(ConfigError, match="test or validation patients"):
        finetune(replace(finetune_config, init=path.parent, data=coarse))
    assert f"pre-trained on {data.grid}, fine-tuned on {coarse.grid}" in capsys.readouterr().err
    assert not finetune_config.out.exists()
    allowed = replace(finetune_config, allow_pretrained_test=True)
    result = finetune(replace(allowed, init=path.parent))
    assert result.initialised_from == "pretrain"
    assert len(result.pretrained_patients) == 1
    big = replace(allowed, init=path, out=tmp_path / "big")
    big = replace(big, model=replace(big.model, max_channels=32))
    with pytest.raises(CheckpointError, match="max_channels must be 32, got 16"):
        finetune(big)
    with pytest.raises(CheckpointError, match="part must be segmenter, got encoder"):
        load_segmenter(path, finetune_config.model)
    assert not big.out.exists()


def test_labelled_scans(data_config):
    train = split_scans(data_config).train
    picks = [pick_labelled(train, names=(), count=1, pick=k)[0] for k in range(2)]
    assert {train[i].phase for i in picks} == {"ED"}
    assert len({train[i].patient for i in picks}) == 2
    name = train[1].name
    assert pick_labelled(train, names=(name,), count=1, pick=0) == [1]
    with pytest.raises(DataError, match="labelled scan 'nobody' is not among the training scans"):
        pick_labelled(train, names=("nobody",), count=1, pick=0)
    with pytest.raises(DataError, match="num_labelled must be 1 to 4"):
        pick_labelled(train, names=(), count=5, pick=0)


def test_supervised_loss_by_hand():
    logits = torch.zeros(1, 2, 1, 2)
    masks = torch.tensor([[[0, 1]]])
    assert supervised_loss(logits, masks, 0.0) == pytest.approx(np.log(2))
    # probabilities 1/2: intersection 1/2, sums 1 + 1, Dice 2 * 1/2 / 2 = 1/2
    both = supervised_loss(logits, masks, 2.0)
    assert float(both) == pytest.approx(np.log(2) + 2 * 0.5, abs=1e-4)


def test_segment_volume_restores_the_grid(data_config):
    scan = find_data(data_config.root).scans[0]
    volume = read_scan(scan)

    class Bright(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, image):
            return torch.cat([0.5 - image, image - 0.5], 1)

    image = torch.zeros(volume.image.shape)
    H, W = image.shape[1:]
    image[:, H // 2 - 8 : H // 2 + 8, W // 2 - 8 : W // 2 + 8] = 100.0
    label = segment_volume(Bright(), image, volume.spacing_mm, data_config.grid)
    assert label.shape == image.shape
    assert dice_per_class(label.long(), (image > 0).long(), 2)[0] > 0.85


def test_evaluate_and_predict_a_run(finetune_config, tmp_path):
    result = finetune(finetune_config)
    again = evaluate(EvaluateConfig(run=finetune_config.out))
    assert again.dice == result.dice
    assert again.hd95_mm == result.hd95_mm
    images = tmp_path / "images"
    images.mkdir()
    scan = split_scans(finetune_config.data).test[0]
    (images / scan.image.name).write_bytes(scan.image.read_bytes())
    written = predict(PredictConfig(finetune_config.out, images, tmp_path / "labels"))
    saved = nibabel.load(finetune_config.out / result.scans[scan.name].prediction)
    assert np.array_equal(np.asarray(nibabel.load(written[0]).dataobj), np.asarray(saved.dataobj))
    (images / "broken.nii.gz").write_bytes(scan.image.read_bytes()[:1000])
    with pytest.raises(DataError, match="1 of 2 images could not be read"):
        predict(PredictConfig(finetune_config.out, images, tmp_path / "more"))
    assert [p.name for p in (tmp_path / "more").iterdir()] == [written[0].name]
    with pytest.raises(DataError, match="images must be a NIfTI file"):
        predict(PredictConfig(finetune_config.out, tmp_path / "none", tmp_path / "x"))


def test_without_test_scans(finetune_config, capsys):
    data = replace(finetune_config.data, num_test=0)
    scores = finetune(replace(finetune_config, data=data, steps=1, val_every=9))
    assert scores.scans == {}
    assert "finetune: no test scans, so there are no scores" in capsys.readouterr().err
    assert (finetune_config.out / "segmenter.safetensors").exists()
    assert not (finetune_config.out / "evaluation.json").exists()
