"""The whole method in minutes: phantom, pre-training, fine-tuning with and without it, a report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from spcl_fast.data.phantom import PhantomConfig, write_acdc
from spcl_fast.report import write_report
from spcl_fast.train.config import preset_path, stage_config
from spcl_fast.train.finetune import FinetuneConfig, finetune
from spcl_fast.train.pretrain import PretrainConfig, pretrain
from spcl_fast.train.progress import progress_bar, say


@dataclass(frozen=True)
class DemoConfig:
    """Pre-train on the phantom, fine-tune on one labelled scan, compare, write a report.

    Attributes:
        out: Folder for the phantom, the runs and report.html. A folder of an interrupted demo is
            taken up where it stopped.
        num_patients: Patients of the phantom.
        seed: Seed of the phantom and of the training.
        pick: Which scan is the labelled one.
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
    phantom = PhantomConfig(num_patients=config.num_patients, seed=config.seed)
    with progress_bar("phantom", config.num_patients) as show:
        root = write_acdc(phantom, config.out / "phantom", progress=lambda done, _: show(done, ""))
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
        f"one labelled scan, test Dice: {scratch['dice_mean']:.3f} from scratch, "
        f"{pretrained['dice_mean']:.3f} pre-trained"
    )
    return write_report(config.out, config.out / "report.html")
