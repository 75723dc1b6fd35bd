"""Run folders: whole files or none, and a log that a resumed run continues."""

import json
import os
import resource
import signal
import sys
from dataclasses import dataclass, field, replace

import pytest
import torch

from spcl_fast.segmentation.runs.config import ConfigError
from spcl_fast.segmentation.runs.provenance import read_provenance
from spcl_fast.segmentation.runs.run import (
    CheckpointError,
    Run,
    load_weights,
    read_log,
    save_weights,
)

FILES = ["config.yaml", "metrics.jsonl", "provenance.json"]


@dataclass(frozen=True)
class TinyConfig:
    data: dict = field(default_factory=dict)
    model: dict = field(default_factory=dict)
    steps: int = 1
    deep: dict = field(default_factory=lambda: {"rate": 0.1})


def test_full_disk_keeps_the_last_state(tmp_path):
    run = Run.start(tmp_path / "run", TinyConfig(), "pretrain", resume=False)
    run.save_state(1, weight=torch.ones(3))
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, unlimited[1]))
    try:
        with pytest.raises(OSError, match=r"state\.pt could not be written"):
            run.save_state(2, weight=torch.zeros(30_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        signal.signal(signal.SIGXFSZ, ignored)
    state = run.load_state()
    assert state["step"] == 1
    assert state["weight"].tolist() == [1, 1, 1]
    assert sorted(os.listdir(run.folder)) == [*FILES, "state.pt"]


def test_folder_of_another_run_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/spcl-fast", "pretrain", "--out", "run"])
    Run.start(folder, TinyConfig(), "pretrain", resume=False).close()
    before = (folder / "config.yaml").read_text()
    with pytest.raises(ConfigError, match="out must be a new folder"):
        Run.start(folder, TinyConfig(), "pretrain", resume=False)
    with pytest.raises(ConfigError, match=r"config\.yaml, with --steps 1, got 0"):
        Run.start(folder, replace(TinyConfig(), steps=0), "pretrain", resume=True)
    with pytest.raises(ConfigError, match=r"config\.yaml, with --deep\.rate 0\.1, got 0\.2"):
        Run.start(folder, replace(TinyConfig(), deep={"rate": 0.2}), "pretrain", resume=True)
    with pytest.raises(ConfigError, match=r"needs a run of finetune, got one of pretrain in"):
        Run.start(folder, TinyConfig(), "finetune", resume=True)
    assert (folder / "config.yaml").read_text() == before
    Run.start(folder, replace(TinyConfig(), steps=2), "pretrain", resume=True).close()
    assert "steps: 2" in (folder / "config.yaml").read_text()
    first, second = read_provenance(folder)  # those that were refused did not start
    assert first["torch"] == second["torch"] == torch.__version__
    assert first["command"] == "spcl-fast pretrain --out run"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="new or empty folder"):
        Run.start(tmp_path / "other", TinyConfig(), "pretrain", resume=True)


def test_what_a_kill_leaves_behind_is_removed(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".partial-12ab34cd-config.yaml").write_text("stage: pre")  # killed in Run.start
    Run.start(folder, TinyConfig(), "pretrain", resume=False).close()
    (folder / ".partial-12ab34cd-state.pt").write_text("half")  # killed in save_state
    run = Run.start(folder, TinyConfig(), "pretrain", resume=True)
    assert run.load_state() is None
    assert sorted(os.listdir(folder)) == FILES


def test_log_is_cut_back_to_the_state(tmp_path):
    run = Run.start(tmp_path / "run", TinyConfig(), "pretrain", resume=False)
    for step in (1, 2, 3):
        run.log("step", step, loss=float(step))
        if step == 2:
            run.save_state(step)
    with open(run.folder / "metrics.jsonl", "a") as file:
        file.write('{"kind": "st')  # torn by a kill
    run.close()
    run = Run.start(tmp_path / "run", TinyConfig(), "pretrain", resume=True)
    assert run.load_state()["step"] == 2
    run.log("step", 3, loss=3.0)
    run.close()
    assert [row["step"] for row in read_log(run.folder / "metrics.jsonl")] == [1, 2, 3]
    for line in (run.folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


@pytest.mark.parametrize("damage", ["truncate", "garbage", "other"])  # kinds of bad files
def test_damaged_state_is_not_read_as_good(tmp_path, damage):
    run = Run.start(tmp_path / "run", TinyConfig(), "pretrain", resume=False)
    run.save_state(1, weight=torch.ones(1000))
    path = run.folder / "state.pt"
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-700])
    elif damage == "garbage":
        path.write_bytes(b"not a checkpoint")
    else:
        torch.save({"epoch": 3}, path)
    with pytest.raises(CheckpointError, match=r"checkpoint .*state\.pt"):
        run.load_state()


def test_weights_say_what_they_are(tmp_path):
    path = tmp_path / "encoder.safetensors"
    save_weights(path, {"a": torch.arange(3.0)}, {"part": "encoder"})
    assert load_weights(path, {"part": "encoder"})["a"].tolist() == [0, 1, 2]
    with pytest.raises(CheckpointError, match="part must be segmenter, got encoder"):
        load_weights(path, {"part": "segmenter"})
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(path, {"part": "encoder"})
    with pytest.raises(CheckpointError, match="does not exist"):
        load_weights(tmp_path / "none", {})
