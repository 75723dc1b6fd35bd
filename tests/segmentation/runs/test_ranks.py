"""Two ranks train as one process does, to rounding; what one of them meets ends all."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from spcl_fast.segmentation.commands.audit import AuditConfig
from spcl_fast.segmentation.commands.comparison import ReproduceConfig
from spcl_fast.segmentation.evaluate.record import read_evaluation
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.finetune.semi.config import TERMS, SemiConfig
from spcl_fast.segmentation.pretrain.config import PretrainConfig
from spcl_fast.segmentation.pretrain.loss_config import DenseConfig, LossConfig
from spcl_fast.segmentation.runs.config import dump_config, stage_config
from spcl_fast.segmentation.runs.launch import Launch, is_lost_rank
from spcl_fast.segmentation.runs.ranks import ALONE, Ranks, Rows
from spcl_fast.segmentation.runs.run import read_log

if not dist.is_available() or not dist.is_gloo_available() or sys.platform == "win32":
    pytest.skip("needs gloo and a fork server", allow_module_level=True)
HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parents[1] / "distributed")]  # the ranks import them by name
programs = importlib.import_module("job_on_ranks")

ROUNDING = 1e-9  # of what the steps change
SMALL_DENSE = DenseConfig(size=4, cells=2)
PRETRAININGS = {
    "labels": {"loss": {"labels": ("position", "patient"), "weights": (1.0, 0.1)}},
    "quantile": {"loss": {"pace": "quantile", "start": (0.6,), "end": (0.9,)}},
    "encoder and decoder": {"dense_weight": 0.5, "dense": SMALL_DENSE},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two processes with a gloo group, started once."""
    rank_programs = importlib.import_module("rank_programs")
    ranks = rank_programs.Ranks(2, tmp_path_factory.mktemp("meeting"))
    yield ranks
    ranks.close()


def distance(pair, config, alone=None):
    """Return the difference of two ranks from one process in losses and in state, after 3 steps.

    That of the state is relative to what the steps change.
    """
    _, begin = programs.steps(0, 1, alone or config, 0)
    losses, state = programs.steps(0, 1, alone or config, 3)
    moved = max(float((state[name] - x).abs().max()) for name, x in begin.items())
    assert moved > 1e-4
    apart = 0.0
    for other_losses, other in pair.run_all(programs.steps, config, 3):
        assert other.keys() == state.keys()
        apart = max(apart, *(float((other[name] - x).abs().max()) for name, x in state.items()))
        apart_losses = max(abs(a - b) for a, b in zip(losses, other_losses, strict=True))
    return apart_losses, apart / moved


@pytest.mark.parametrize("name", PRETRAININGS)
def test_pretraining_equals_that_of_one_process(pair, pretrain_config, name):
    changes = dict(PRETRAININGS[name])
    loss = replace(pretrain_config.loss, **changes.pop("loss", {}))
    config = replace(pretrain_config, num_scans=3, loss=loss, **changes)
    assert max(distance(pair, config)) < ROUNDING


def test_chunks_on_two_ranks_equal_the_whole_batch(pair, pretrain_config):
    alone = replace(pretrain_config, model=replace(pretrain_config.model, norm="group"))
    assert max(distance(pair, replace(alone, cached_chunk=5), alone)) < ROUNDING


def test_batch_norm_of_each_rank_is_another_training(pair, pretrain_config):
    config = replace(pretrain_config, sync_batch_norm=False)
    assert min(distance(pair, config)) > 1e-3


QUICK_TERMS = ("contrast", "mixup")
SLOW_TERMS = [pytest.param(x, marks=pytest.mark.slow) for x in TERMS if x not in QUICK_TERMS]


@pytest.mark.parametrize("term", [None, *QUICK_TERMS, *SLOW_TERMS])
def test_finetuning_equals_that_of_one_process(pair, finetune_config, term):
    loss = LossConfig(projector_batch_norm=True)
    semi = SemiConfig(loss=loss, dense=SMALL_DENSE, num_scans=2, teacher_decay=0.5)
    semi = replace(semi, **({} if term is None else {term: 1.0}))
    config = replace(finetune_config, semi=semi, batch_size=5)
    assert max(distance(pair, config)) < ROUNDING


def test_one_rank_writes_the_run(pair, pretrain_config, finetune_config):
    config = replace(pretrain_config, epochs=1, steps_per_epoch=2)
    path = config.out / "encoder.safetensors"
    assert pair.run_all(programs.train, config) == [path] * 2
    assert path.exists()
    assert [row["kind"] for row in read_log(config.out / "metrics.jsonl")] == ["step", "epoch"]
    tuned = replace(finetune_config, init=path, allow_pretrained_test=True)
    first, second = pair.run_all(programs.train, tuned)
    assert first == second
    assert first.scans
    assert (tuned.out / "evaluation.json").exists()


def result(folder):
    """Return the scores of a fine-tuning, or the losses of a pre-training."""
    if (folder / "evaluation.json").exists():
        return list(read_evaluation(folder / "evaluation.json").dice_by_patient().values())
    return [row["loss"] for row in read_log(folder / "metrics.jsonl") if row["kind"] == "epoch"]


def assert_runs_equal_those_of_one_process(out, names, elsewhere):
    assert {path.parent.name for path in out.glob("*/config.yaml")} == set(names)
    for name in names:
        stage = "pretrain" if (out / name / "encoder.safetensors").exists() else "finetune"
        cls = PretrainConfig if stage == "pretrain" else FinetuneConfig
        config = stage_config(cls, stage, out / name / "config.yaml")
        programs.train(0, 1, replace(config, out=elsewhere / name))
        assert result(out / name) == pytest.approx(result(elsewhere / name), abs=1e-3), name


@pytest.mark.slow
def test_ranks_share_the_runs_of_a_comparison(pair, phantom, preset_file, tmp_path):
    methods = ("scratch", "position")
    config = ReproduceConfig(
        "acdc", phantom, tmp_path / "out", seeds=1, labelled=("all",), methods=methods
    )
    bad = config.out / "10-all-scratch"
    bad.mkdir(parents=True)
    (bad / "something").write_text("else")
    table = config.out / "reproduction.md"
    assert pair.run_all(programs.grid, "reproduce", config, preset_file) == [table] * 2
    content = json.loads((config.out / "reproduction.json").read_text())
    assert [len(row["dice"]) for row in content["methods"]] == [0, 1]  # a failure is a gap
    (bad / "something").unlink()
    pair.run_all(programs.grid, "reproduce", config, preset_file)
    content = json.loads((config.out / "reproduction.json").read_text())
    assert [len(row["dice"]) for row in content["methods"]] == [1, 1]
    names = [bad.name, "10-all-position", "10-encoder-position"]
    assert_runs_equal_those_of_one_process(config.out, names, tmp_path / "alone")
    for failure in pair.run(programs.grid, "reproduce", replace(config, jobs=2), preset_file):
        assert "jobs must be 1 in the 2 processes of torchrun, got 2" in failure.text


def test_ranks_share_the_runs_of_an_audit(pair, phantom, preset_file, tmp_path):
    config = AuditConfig(phantom, tmp_path / "audit", noise=(0.4,), paces=("linear",), picks=1)
    path = config.out / "audit.json"
    assert pair.run_all(programs.grid, "audit", config, preset_file) == [path] * 2
    (row,) = json.loads(path.read_text())["rows"]
    assert len(row["dice"]) == 1
    names = ["0-0.4-linear", "0-0.4-linear-0"]
    assert_runs_equal_those_of_one_process(config.out, names, tmp_path / "alone")


def test_a_damaged_state_is_an_error_of_all_ranks(pair, pretrain_config):
    config = replace(pretrain_config, epochs=1, steps_per_epoch=1)
    pair.run_all(programs.train, config)
    (config.out / "state.pt").write_bytes(b"nothing")
    failures = pair.run(programs.resume, config)
    assert [failure.kind for failure in failures] == ["CheckpointError", "ValueError"]
    assert all("state.pt cannot be read" in failure.text for failure in failures)


def test_batch_norm_over_ranks_equals_torch(pair):
    torch.manual_seed(0)
    x, upstream = torch.randn(2, 7, 3, 4, 5, dtype=torch.float64).add(2).unbind()
    first, second = pair.run_all(programs.normalise, x, upstream)
    norm = torch.nn.BatchNorm2d(3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 1.5, 3))
    leaf = x.clone().requires_grad_()
    y = norm(leaf)
    y.backward(upstream)
    torch.testing.assert_close(torch.cat([first[0], second[0]]), y.detach())
    torch.testing.assert_close(torch.cat([first[1], second[1]]), leaf.grad)
    torch.testing.assert_close(first[2] + second[2], norm.weight.grad)
    for name, value in norm.state_dict().items():
        for rank in (first, second):
            torch.testing.assert_close(rank[3][f"0.{name}"], value)


def test_an_encoder_sharded_by_fsdp_equals_one_process(pair):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 1, 32, 32, generator=generator, dtype=torch.float64)
    labels = torch.arange(8) % 3
    losses, weights = programs.sharded(0, 1, x, labels)
    for other_losses, others in pair.run_all(programs.sharded, x, labels):
        assert other_losses == pytest.approx(losses, rel=1e-10)
        # Adam divides rounding by its own size where the gradient is 0
        assert max(float((a - b).abs().max()) for a, b in zip(weights, others, strict=True)) < 1e-7


def test_an_error_of_the_first_rank_is_raised_by_all(pair):
    failures = pair.run(programs.fail_on_the_first)
    assert [failure.kind for failure in failures] == ["ValueError"] * 2
    assert all("ValueError: 0 is wrong" in failure.text for failure in failures)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_rows_of_all_ranks_are_the_batch(world):
    x = torch.arange(14)
    parts = [Rows(Ranks(rank, world), 7) for rank in range(world)]
    assert torch.equal(torch.cat([part.take(x[:7]) for part in parts]), x[:7])
    views = torch.cat([part.take_views(x) for part in parts])
    assert torch.equal(views.sort().values, x)
    assert torch.equal(parts[-1].take_views(x) % 7, parts[-1].take(x[:7]).repeat(2))
    assert sum(map(len, parts)) == 7
    with pytest.raises(ValueError, match="a slice for each of the 3 ranks, got 2"):
        Ranks(0, 3).rows(2)
    assert ALONE.rows(7).mean(x.float()) is not None


def test_what_all_ranks_say_is_said_once():
    store = dist.HashStore()
    launches = [Launch() for _ in range(2)]
    assert all(launch.is_first_to_say("before they meet") for launch in launches)  # rank 0 each
    for launch in launches:
        launch._store = store
    assert [launch.is_first_to_say("x is wrong") for launch in launches] == [True, False]
    assert launches[1].is_first_to_say("y is wrong")
    launches[1].rank, launches[1]._store = 1, None
    assert not launches[1].is_first_to_say("before they meet")
    assert is_lost_rank(RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer"))
    assert not is_lost_rank(RuntimeError("out of memory"))


def start(*words):
    """Start a command on two ranks by torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, "-m", "spcl_fast", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def rank_pids(process):
    """Return the processes that torchrun has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in children.read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
def test_a_killed_rank_leaves_a_run_to_resume(pair, pretrain_config, tmp_path):
    config = replace(pretrain_config, epochs=8, steps_per_epoch=3, out=tmp_path / "killed")
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(config, "pretrain", "killed"))
    process = start("pretrain", "--config", str(file))
    deadline = time.monotonic() + 120
    while not (config.out / "state.pt").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(rank_pids(process)[-1], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (config.out / "encoder.safetensors").exists()

    pair.run_all(programs.resume, config)
    pair.run_all(programs.train, replace(config, out=tmp_path / "whole"))
    whole, killed = (
        programs.tensors(torch.load(out / "state.pt", weights_only=True)["model"])
        for out in (tmp_path / "whole", config.out)
    )
    assert all(torch.equal(killed[name], x) for name, x in whole.items())
