"""The segmenter of a run, or those of several as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from spcl_fast.segmentation.evaluate.ensemble import Ensemble
from spcl_fast.segmentation.evaluate.reading import Reading, reading_of
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.networks import UNet
from spcl_fast.segmentation.runs.config import ConfigError, stage_config
from spcl_fast.segmentation.runs.network import load_segmenter


class Trained(NamedTuple):
    """What runs that share model, grid and way to read images have trained.

    Attributes:
        model: The segmenter, on the CPU.
        configs: The configuration of each run.
        reading: How images are read.
    """

    model: UNet | Ensemble
    configs: list[FinetuneConfig]
    reading: Reading


def load_trained(runs: Sequence[Path], *, flips: bool = False) -> Trained:
    """Return the segmenter of a run, or the mean of those of several.

    Args:
        runs: Run folders of `finetune`.
        flips: Also segment mirrored images, and average.

    Raises:
        ConfigError: The runs differ in what an ensemble must share.
        CheckpointError: A segmenter cannot be loaded.
    """
    configs = [stage_config(FinetuneConfig, "finetune", run / "config.yaml") for run in runs]
    readings = [reading_of(run) for run in runs]
    shared = [(c.model, c.data.grid, reading) for c, reading in zip(configs, readings, strict=True)]
    for run, one in zip(runs, shared, strict=True):
        if one != shared[0]:
            raise ConfigError(
                f"run must name runs of one model, grid and way to read images, got {runs[0]} "
                f"and {run}"
            )
    models = [load_segmenter(run, configs[0].model) for run in runs]
    is_plain = len(models) == 1 and not flips
    model = models[0] if is_plain else Ensemble(models, flips=flips)
    return Trained(model, configs, readings[0])


def one_or_more(run: Path | str | tuple[Path, ...]) -> tuple[Path, ...]:
    """Return run folders as a tuple; a single one may stand by itself."""
    return (Path(run),) if isinstance(run, (str, Path)) else run
