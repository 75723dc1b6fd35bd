"""The demo from the phantom to the report, on a toy preset, interrupted and taken up."""

import json
import sys

import pytest

from spcl_fast.cli import main
from spcl_fast.segmentation.commands import demo as module
from spcl_fast.segmentation.commands.demo import DemoConfig, demo, how_to_go_on

TOY = """
data: {grid: {size: 32, spacing_mm: 7.0}, num_test: 2, num_val: 1}
model: {max_channels: 16}
pretrain:
  loss: {projector_batch_norm: true}
  num_scans: 2
  epochs: 4
  steps_per_epoch: 2
finetune: {steps: 4, batch_size: 2, val_every: 2, save_every: 2}
"""


def test_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    text = how_to_go_on(tmp_path / "demo" / "report.html")
    assert (tmp_path / "demo" / "report.html").as_uri() in text
    assert "  source .venv/bin/activate\n" in text
    words = [line.split()[1:] for line in text.splitlines() if line.startswith("  spcl-fast")]
    assert [line[0] for line in words] == ["data", "pretrain"]
    (tmp_path / "start.yaml").write_text("data: {}\n")
    for line in words:  # options that the commands have
        with pytest.raises(SystemExit) as stopped:
            main([*line, "--help"])
        assert stopped.value.code == 0
    monkeypatch.setenv("VIRTUAL_ENV", ".venv")
    assert "source" not in how_to_go_on(tmp_path / "demo" / "report.html")


@pytest.mark.slow
def test_demo_survives_an_interrupt(tmp_path, monkeypatch):
    preset = tmp_path / "toy.yaml"
    preset.write_text(TOY)
    monkeypatch.setattr(module, "preset_path", lambda name: preset)
    finetune, calls = module.finetune, []

    def stop_at_the_second(config, *, resume):
        calls.append(config.out.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return finetune(config, resume=resume)

    monkeypatch.setattr(module, "finetune", stop_at_the_second)
    config = DemoConfig(out=tmp_path / "demo", num_patients=5)
    with pytest.raises(KeyboardInterrupt):
        demo(config)
    report = demo(config)
    assert calls == ["scratch", "pretrained", "scratch", "pretrained"]
    assert report.stat().st_size > 10_000
    summary = json.loads((config.out / "summary.json").read_text())
    for key, name in [("dice_from_scratch", "scratch"), ("dice_pretrained", "pretrained")]:
        evaluation = json.loads((config.out / name / "evaluation.json").read_text())
        assert summary[key]["mean"] == evaluation["dice_mean"]
        assert summary["labelled_scans"] == evaluation["labelled_scans"]
    with pytest.raises(ValueError, match="got another one"):
        demo(DemoConfig(out=config.out, num_patients=6))
