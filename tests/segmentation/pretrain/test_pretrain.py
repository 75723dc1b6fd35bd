"""Pre-training: it learns, its log is complete, and a killed run ends with the same weights."""

import importlib
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from spcl_fast.segmentation.data.slices import load_slices
from spcl_fast.segmentation.pretrain.contrast import contrastive_step, make_heads, paced_step
from spcl_fast.segmentation.pretrain.health import knn_position_accuracy
from spcl_fast.segmentation.pretrain.loop import pretrain
from spcl_fast.segmentation.pretrain.loss_config import LossConfig
from spcl_fast.segmentation.pretrain.step import PretrainTrainer
from spcl_fast.segmentation.runs.config import ConfigError, dump_config
from spcl_fast.segmentation.runs.dataset import all_scans, split_scans
from spcl_fast.segmentation.runs.ranks import Ranks
from spcl_fast.segmentation.runs.run import read_log


def test_log_figures_and_files(pretrain_config):
    path = pretrain(pretrain_config)
    rows = read_log(path.parent / "metrics.jsonl")
    assert [r["step"] for r in rows if r["kind"] == "step"] == [2, 4, 6, 8, 10, 12]
    epochs = [r for r in rows if r["kind"] == "epoch"]
    assert [r["epoch"] for r in epochs] == [0, 1, 2]
    steps = [r for r in rows if r["kind"] == "step"]
    num_rows = steps[0]["num_rows"]
    assert num_rows == 2 * 4 * 3
    assert epochs[0]["collapse_loss"] == pytest.approx(math.log(num_rows - 1))
    assert 0 <= epochs[0]["knn_position_accuracy"] <= 1
    # gamma of the relative pace at step k - 1 of 12
    progress = (steps[0]["step"] - 1) / 12
    expected = (1.2 + (15 - 1.2) * progress**0.5) * math.log(num_rows - 1)
    assert steps[0]["gamma"] == pytest.approx(expected)
    embedding = np.load(path.parent / "embedding.npz")
    assert np.allclose(np.linalg.norm(embedding["z"], axis=1), 1, atol=1e-5)
    assert len(embedding["position"]) == len(embedding["z"]) == len(embedding["vendor"])
    snapshots = sorted((path.parent / "weights").iterdir())
    shot = np.load(snapshots[-1])
    assert [path.name for path in snapshots] == [f"step_{k:06d}.npz" for k in (0, 4, 12)]
    first = np.load(snapshots[0])  # where gamma is lowest
    assert first["gamma"] == pytest.approx(1.2 * math.log(num_rows - 1))
    assert first["weight"][first["positive"]].mean() < shot["weight"][shot["positive"]].mean()
    assert set(np.unique(shot["scan"])) == {0, 1}
    assert shot["weight"][~shot["positive"]].max() == 0
    assert 0 < shot["weight"][shot["positive"]].mean() <= 1


def test_a_gamma_that_switches_off_the_positives_is_told_once(pretrain_config, capsys, monkeypatch):
    monkeypatch.setattr(importlib.import_module(pretrain.__module__), "is_built", lambda: False)
    loss = replace(pretrain_config.loss, pace="absolute", start=(0.1,), end=(0.1,))
    pretrain(replace(pretrain_config, loss=loss, epochs=1))
    told = capsys.readouterr().err
    assert told.count("gamma switches off more than 95 %") == 1
    assert told.count("slower than it need be: the extension is not built: ") == 1


def test_loss_falls(pretrain_config):
    config = replace(pretrain_config, loss=replace(pretrain_config.loss, pace="none"), epochs=6)
    path = pretrain(replace(config, steps_per_epoch=10, optim=replace(config.optim, lr=5e-3)))
    losses = [r["loss"] for r in read_log(path.parent / "metrics.jsonl") if r["kind"] == "epoch"]
    assert losses[-1] < losses[0] - 0.15


@pytest.mark.slow
def test_killed_run_ends_with_the_same_weights(pretrain_config, tmp_path):
    whole = pretrain(replace(pretrain_config, out=tmp_path / "whole", epochs=6))
    config = replace(pretrain_config, out=tmp_path / "killed", epochs=6)
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(config, "pretrain", "killed"))
    command = [sys.executable, "-m", "spcl_fast.cli", "pretrain", "--config", str(file), "--resume"]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not (config.out / "state.pt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (config.out / "encoder.safetensors").exists()
    pretrain(config, resume=True)
    resumed = load_file(config.out / "encoder.safetensors")
    for name, value in load_file(whole).items():
        assert torch.equal(value, resumed[name]), name
    rows = [r["step"] for r in read_log(config.out / "metrics.jsonl") if r["kind"] == "step"]
    assert rows == list(range(2, 25, 2))


def test_finished_run_is_not_trained_again(pretrain_config):
    path = pretrain(pretrain_config)
    before = load_file(path)
    with pytest.raises(ConfigError, match="holds a run"):
        pretrain(pretrain_config)
    pretrain(pretrain_config, resume=True)
    assert all(torch.equal(before[name], value) for name, value in load_file(path).items())


@pytest.mark.parametrize("own", [True, False])  # a head a label, and one head for all
@pytest.mark.parametrize("pace", ["none", "absolute", "relative", "quantile"])
def test_contrastive_step_of_two_labels(own, pace):
    torch.manual_seed(0)
    end = {"quantile": 0.9, "absolute": 50.0}.get(pace, 15.0)
    config = LossConfig(
        labels=("position", "patient"),
        weights=(1.0, 0.1),
        pace=pace,
        start=(0.5,),
        end=(end,),
        own_projector=own,
    )
    heads = make_heads(8, config)
    assert set(heads) == ({"position", "patient"} if own else {"shared"})
    features = torch.randn(12, 8, 2, 2, requires_grad=True)
    labels = {"position": torch.arange(12) % 3, "patient": torch.arange(12) // 4}
    out = contrastive_step(features, labels, heads, 0.5, config)
    out.loss.backward()
    assert features.grad.abs().sum() > 0
    assert out.stats["num_anchors"] == 12
    if pace == "quantile":
        gamma = out.gamma["patient"]
        assert isinstance(gamma, torch.Tensor)
    if pace == "none":
        assert out.stats["mean_weight"] == pytest.approx(1.0)


def test_position_window_replaces_partitions(pretrain_config):
    loss = replace(pretrain_config.loss, position_window=0.15)
    path = pretrain(replace(pretrain_config, loss=loss, epochs=1))
    shot = np.load(path.parent / "weights" / "step_000004.npz")
    distance = np.abs(shot["position"][:, None] - shot["position"])
    expected = (distance <= 0.15) & ~np.eye(len(distance), dtype=bool)
    assert np.array_equal(shot["positive"], expected)
    assert (shot["weight"][expected] > 0).any()


def test_knn_accuracy_leaves_the_patient_out(data_config):
    slices = load_slices(all_scans(data_config), data_config.grid, data_config.cache)
    bins = torch.floor(slices.slice_index * 6 / slices.num_slices).long()
    told = torch.nn.functional.one_hot(bins, 6).float()
    assert knn_position_accuracy(told, slices) == 1.0
    # features that tell the patient only: the other patients' slices are all alike
    patient = torch.nn.functional.one_hot(slices.meta["patient"]).float()
    assert knn_position_accuracy(patient, slices) < 0.5


def test_split_keeps_patients_apart(data_config):
    split = split_scans(data_config)
    groups = [{scan.patient for scan in scans} for scans in split]
    assert [len(g) for g in groups] == [2, 2, 2]
    assert len(set.union(*groups)) == 6


def test_meta_label_from_the_csv(pretrain_config):
    loss = LossConfig(labels=("vendor",), projector_batch_norm=True)
    path = pretrain(replace(pretrain_config, loss=loss, epochs=1))
    assert path.exists()
    wrong = replace(pretrain_config, loss=replace(loss, labels=("scanner",)))
    with pytest.raises(ValueError, match=r"vendor"):
        pretrain(replace(wrong, out=path.parent / "wrong"))
    assert not (path.parent / "wrong").exists()


@pytest.mark.parametrize("dense_weight", [0.0, 1.0])  # independent and aligned views
def test_the_network_alone_has_the_precision_of_a_run(pretrain_config, dense_weight):
    seen = {}
    slices = load_slices(all_scans(pretrain_config.data), pretrain_config.data.grid)
    for precision in ("float32", "bfloat16"):
        config = replace(pretrain_config, precision=precision, dense_weight=dense_weight)
        config = replace(config, dense=replace(config.dense, size=4, cells=2))
        trainer = PretrainTrainer(config, slices, torch.device("cpu"))
        kept = seen.setdefault(precision, [])
        trainer.encoder.register_forward_hook(lambda _, x, y, kept=kept: kept.extend((x[0], y[-1])))
        out = trainer.train_step()
        assert out.loss.dtype == torch.float32
        kept.append(out.loss)
    views, maps, loss = zip(*seen.values(), strict=True)
    assert torch.equal(*views)
    assert [x.dtype for x in maps] == [torch.float32, torch.bfloat16]
    assert loss[1] == pytest.approx(float(loss[0]), rel=0.1)


def test_a_compiled_step_is_the_step_in_one_graph(pretrain_config, monkeypatch):
    compiled = []

    def with_a_quick_backend(module, **options):
        compiled.append(type(module).__name__)
        assert options == {"fullgraph": True}
        original(module, backend="eager", **options)

    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", with_a_quick_backend)
    slices = load_slices(all_scans(pretrain_config.data), pretrain_config.data.grid)
    losses = {}
    for is_compiled in (False, True):
        config = replace(pretrain_config, compile=is_compiled)
        trainer = PretrainTrainer(config, slices, torch.device("cpu"))
        losses[is_compiled] = [float(trainer.train_step().loss) for _ in range(2)]
    assert compiled == ["PretrainNetwork", "ProjectionHead", "SelfPacedContrastiveLoss"]
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)


def test_the_kernel_over_positions_needs_one_process():
    config = LossConfig(labels=("position",), weights=(1.0,), pace="none", position_kernel=0.1)
    z, position = torch.eye(4), torch.linspace(0, 1, 4)
    two = Ranks(rank=0, world=2).rows(2)
    with pytest.raises(ValueError, match=r"loss\.position_kernel must be 0 in more than one proc"):
        paced_step(z, {"position": position}, 0.0, config, two)
    assert paced_step(z, {"position": position}, 0.0, config).loss > 0
