"""The whole method in minutes: phantom, pre-training, fine-tuning with and without it, report."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from spcl_fast.atomic_file import atomic_file
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.finetune.loop import finetune
from spcl_fast.segmentation.phantom import PhantomConfig, write_phantom
from spcl_fast.segmentation.pretrain.config import PretrainConfig
from spcl_fast.segmentation.pretrain.loop import pretrain
from spcl_fast.segmentation.report import write_report
from spcl_fast.segmentation.runs.config import preset_path, stage_config
from spcl_fast.segmentation.runs.progress import progress_bar, say


@dataclass(frozen=True)
class DemoConfig:
    """Pre-train on the phantom, fine-tune on one labelled scan, compare, write a report.

    Attributes:
        out: Folder for the phantom, the runs, report.html and summary.json. An interrupted demo
            resumes where it stopped.
        num_patients: Number of patients in the phantom.
        seed: Seed of the phantom and of the training.
        pick: Number of the labelled scan.
    """

    out: Path = Path("demo")
    num_patients: int = 24
    seed: int = 0
    pick: int = 0


def demo(config: DemoConfig) -> Path:
    """Run the demo; return the path of the report.

    Raises:
        ConfigError, ValueError: `out` holds something else, or a demo of another configuration.
    """
    began = time.perf_counter()
    phantom = PhantomConfig(num_patients=config.num_patients, seed=config.seed)
    with progress_bar("phantom", config.num_patients) as show:
        root = write_phantom(
            phantom, config.out / "phantom", progress=lambda done, _: show(done, "")
        )
    preset = preset_path("demo")
    stage1 = stage_config(PretrainConfig, "pretrain", preset)
    stage2 = stage_config(FinetuneConfig, "finetune", preset)
    data = replace(stage1.data, root=root, csv=root / "metadata.csv", cache=config.out / "cache")
    stage1 = replace(stage1, data=data, seed=config.seed, out=config.out / "pretrain")
    stage2 = replace(stage2, data=data, seed=config.seed, pick=config.pick)
    pretrain(stage1, resume=True)
    scratch = finetune(replace(stage2, out=config.out / "scratch"), resume=True)
    init = replace(stage2, init=stage1.out, out=config.out / "pretrained")
    pretrained = finetune(init, resume=True)
    say(
        f"one labelled scan, test Dice: {scratch.dice_mean:.3f} from scratch, "
        f"{pretrained.dice_mean:.3f} pre-trained"
    )
    report = write_report(config.out, config.out / "report.html")
    summary = {
        "command": "spcl-fast demo",
        "seconds": round(time.perf_counter() - began),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "labelled_scans": list(scratch.labelled_scans),
        "test_scans": len(scratch.scans),
        "dice_from_scratch": scratch.dice | {"mean": scratch.dice_mean},
        "dice_pretrained": pretrained.dice | {"mean": pretrained.dice_mean},
    }
    with atomic_file(config.out / "summary.json") as path:
        path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    say(how_to_go_on(report))
    return report


def how_to_go_on(report: Path) -> str:
    """Return how to look at the report, and the commands that come next."""
    lines = [f"look at it:  open {report.resolve().as_uri()} in a browser", "then:"]
    if sys.prefix != sys.base_prefix and "VIRTUAL_ENV" not in os.environ:
        activate = Path(sys.prefix) / "bin" / "activate"
        here = Path.cwd()
        shown = activate.relative_to(here) if activate.is_relative_to(here) else activate
        lines.append(f"  source {shown}")
    lines += [
        "  spcl-fast data inspect YOUR_SCANS --write start.yaml",
        "  spcl-fast pretrain --config start.yaml --out runs/encoder",
        "docs/own-data.md says how YOUR_SCANS may look and how to go on from there",
    ]
    return "\n".join(lines)
