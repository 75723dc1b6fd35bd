"""The configuration of a fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from spcl_fast.segmentation.data.augment import AugmentConfig
from spcl_fast.segmentation.evaluate.metrics import Absent
from spcl_fast.segmentation.finetune.semi.config import SemiConfig
from spcl_fast.segmentation.networks.encoders import UNET
from spcl_fast.segmentation.runs.dataset import DataConfig
from spcl_fast.segmentation.runs.device import Device, Precision
from spcl_fast.segmentation.runs.network import ModelConfig
from spcl_fast.segmentation.runs.optim import OptimConfig


@dataclass(frozen=True)
class FinetuneConfig:
    """Train the segmenter on a few labelled scans and evaluate it on the test scans.

    Attributes:
        out: Run folder.
        init: Run folder of a pre-training, for its encoder and its decoder if it has one; or an
            encoder.safetensors. None trains from scratch.
        allow_pretrained_test: Evaluate on test or validation patients that the pre-training saw
            without their masks (transductive use); the report marks such runs.
        labelled: Names of the labelled scans; empty means to pick `num_labelled`.
        num_labelled: Scans to pick, end-diastolic ones first.
        pick: Number of the pick.
        data: Scans and grid.
        model: Network.
        optim: Optimiser.
        augment: Augmentation of labelled and unlabelled slices.
        dice_weight: Weight of soft Dice, added to cross-entropy; 0 in the paper.
        semi: Terms on unlabelled slices.
        steps: Optimiser steps.
        batch_size: Labelled slices per step.
        val_every: Steps between points of the validation curve.
        select: "last" evaluates the weights after the last step, "best" those with the highest
            validation Dice, as the paper's authors do.
        save_every: Steps between checkpoints.
        log_every: Steps between lines of the log.
        seed: Seed of the weights, the batches and the augmentation.
        device: "auto" uses CUDA if available.
        threads: CPU threads; 0 leaves torch's default.
        precision: Precision of the network in training; "auto" is bfloat16 on CUDA and float32 on
            a CPU.
        deterministic: Ask torch for deterministic algorithms.
        compile: Compile the network and the loss (torch.compile): the first step takes a minute or
            more, those after it less.
        sync_batch_norm: On several ranks, normalise over the rows of all of them; else over those
            of each rank, of which the first enters the running statistics.
        predictions: Write a NIfTI prediction for every test scan.
        absent_class: A class without a voxel in the mask of a scan: "nan" leaves it out there, as
            not annotated; "score" counts Dice 1 where it was not found either, else 0.
    """

    out: Path = Path("runs/finetune")
    init: Path | None = None
    allow_pretrained_test: bool = False
    labelled: tuple[str, ...] = ()
    num_labelled: int = 1
    pick: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=6e-5))
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    dice_weight: float = 1.0
    semi: SemiConfig = field(default_factory=SemiConfig)
    steps: int = 12000
    batch_size: int = 10
    val_every: int = 500
    select: Literal["last", "best"] = "last"
    save_every: int = 500
    log_every: int = 10
    seed: int = 0
    device: Device = "auto"
    threads: int = 0
    precision: Precision = "auto"
    deterministic: bool = False
    compile: bool = False
    sync_batch_norm: bool = True
    predictions: bool = True
    absent_class: Absent = "nan"

    def __post_init__(self) -> None:
        """Check the counts and weights."""
        for name in ("steps", "batch_size", "val_every", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("dense_contrast", "mutual_information"):  # these name maps of the U-Net
            if self.model.encoder != UNET and getattr(self.semi, name):
                raise ValueError(f"semi.{name} must be 0 with encoder {self.model.encoder}")
        if not self.dice_weight >= 0:
            raise ValueError(f"dice_weight must not be negative, got {self.dice_weight}")
