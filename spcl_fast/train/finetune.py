"""Stage 2: train the segmenter on a few labelled scans, from scratch or a pre-trained network.

    L = L_sup + sum over the terms of `SemiConfig` of weight x term

L_sup is cross-entropy plus soft Dice on labelled slices. The terms use all training slices without
their masks. From scratch and with the contrastive term, this is the one-stage training of the
paper's equation 4 (arXiv:2107.13741).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spcl_fast.data.augment import AugmentConfig, augment
from spcl_fast.models import UNet
from spcl_fast.train.config import ConfigError
from spcl_fast.train.dataset import DataConfig, pick_labelled, split_scans, training_slices
from spcl_fast.train.device import Device, Precision, autocast, set_up_device
from spcl_fast.train.evaluate import (
    check_classes,
    evaluate_scans,
    slice_dice,
    summary_line,
    write_evaluation,
)
from spcl_fast.train.network import ModelConfig, load_pretrained, segmenter_metadata
from spcl_fast.train.optim import OptimConfig, finite_loss, make_optimizer, set_lr, warmup_cosine
from spcl_fast.train.progress import progress_bar, say
from spcl_fast.train.run import Run, save_weights
from spcl_fast.train.semi.loss import SemiConfig, SemiLoss
from spcl_fast.train.supervised import supervised_loss


@dataclass(frozen=True)
class FinetuneConfig:
    """Train the segmenter on a few labelled scans and evaluate it on the test scans.

    Attributes:
        out: Run folder.
        init: Run folder of a pre-training, whose encoder and, where there is one, decoder are
            taken; or an encoder.safetensors. None is from scratch.
        labelled: Names of the labelled scans; empty means to pick `num_labelled`.
        num_labelled: Scans to pick, end-diastolic ones first.
        pick: Which pick.
        data: Scans and grid.
        model: Network.
        optim: Optimiser.
        augment: Augmentation of labelled and unlabelled slices.
        dice_weight: Weight of soft Dice beside cross-entropy; 0 in the paper.
        semi: The terms on unlabelled slices.
        steps: Optimiser steps.
        batch_size: Labelled slices a step.
        val_every: Steps between points of the validation curve.
        select: "last" evaluates the weights after the last step, "best" those at the point of the
            validation curve with the largest Dice, as the paper's authors do.
        save_every: Steps between states.
        log_every: Steps between lines of the log.
        seed: Seed of the weights, the batches and the augmentation.
        device: "auto" takes CUDA where there is one.
        threads: CPU threads; 0 leaves torch's choice.
        precision: Of the network in training; "auto" is bfloat16 on CUDA and float32 on a CPU.
        deterministic: Ask torch for deterministic algorithms.
        predictions: Write a NIfTI file of every test scan.
    """

    out: Path = Path("runs/finetune")
    init: Path | None = None
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
    predictions: bool = True

    def __post_init__(self) -> None:
        """Check the counts and weights."""
        for name in ("steps", "batch_size", "val_every", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not self.dice_weight >= 0:
            raise ValueError(f"dice_weight must not be negative, got {self.dice_weight}")


def finetune(config: FinetuneConfig, *, resume: bool = False) -> dict[str, Any]:
    """Train on the labelled scans, evaluate on the test scans; return the evaluation.

    Raises:
        DataError, ConfigError, CheckpointError, ValueError: One sentence for the user.
    """
    device = set_up_device(config.device, config.threads, deterministic=config.deterministic)
    split = split_scans(config.data)
    check_classes([*split.train, *split.val, *split.test], config.model.num_classes)
    chosen = pick_labelled(
        split.train, names=config.labelled, count=config.num_labelled, pick=config.pick
    )
    is_semi = bool(config.semi.weights)
    scans = split.train if is_semi else [split.train[i] for i in chosen]
    slices = training_slices(config.data, scans).to(device)
    labelled = slices.select(chosen) if is_semi else slices
    val = training_slices(config.data, split.val).to(device) if split.val else None
    if config.select == "best" and (val is None or config.val_every > config.steps):
        raise ConfigError("select must be last without a point of validation, got best")
    training = _Training(config, slices, device)

    run = Run.start(config.out, config, "finetune", resume=resume)
    if resume and (state := run.load_state()):
        training.load(state)
    step = training.step
    with progress_bar(f"finetune {run.name}", config.steps, step) as show:
        while step < config.steps:
            losses = training.train_step(labelled.images, labelled.masks)
            step = training.step
            if step % config.log_every == 0:  # the only device-to-host copy in the loop
                values = {name: float(value) for name, value in losses.items()}
                finite_loss(losses["loss"], step)
                run.log("step", step, **values, lr=training.lr)
                show(step, f"loss {values['loss']:.3f}")
            if val is not None and step % config.val_every == 0:
                dice = slice_dice(training.evaluated, val)
                mean = sum(dice.values()) / len(dice)
                run.log("val", step, dice=dice, dice_mean=mean)
                training.keep_best(mean)
            if step % config.save_every == 0 or step == config.steps:
                finite_loss(losses["loss"], step)
                run.save_state(step, **training.state())
    training.select()
    path = run.folder / "segmenter.safetensors"
    save_weights(path, training.evaluated.state_dict(), segmenter_metadata(config.model))
    folder = run.folder / "predictions" if config.predictions else None
    result = evaluate_scans(training.evaluated, split.test, config.data.grid, folder)
    result["labelled_scans"] = [split.train[i].name for i in chosen]
    result["num_training_scans"] = len(split.train)
    result["initialised_from"] = None if config.init is None else run_name(config.init)
    write_evaluation(run.folder / "evaluation.json", result)
    run.close()
    say(f"{run.name}: {summary_line(result)}")
    return result


class _Training:
    """Everything that a step changes."""

    def __init__(self, config: FinetuneConfig, slices: Any, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.segmenter = UNet(1, config.model.num_classes, config.model.max_channels)
        if config.init is not None:
            load_pretrained(self.segmenter, config.init, config.model)
        self.segmenter.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.generator = torch.Generator().manual_seed(config.seed)
        self.semi: SemiLoss | None = None
        if config.semi.weights:
            self.semi = SemiLoss(
                self.segmenter,
                slices,
                config.semi,
                config.augment,
                self.generator,
                config.precision,
            ).to(device)
        self.optimizer = make_optimizer(self._trained(), config.optim)
        self.step = 0
        self.best: dict[str, Any] | None = None  # Dice and weights, where the best are selected

    def _trained(self) -> Iterator[nn.Parameter]:
        return chain(self.segmenter.parameters(), () if self.semi is None else self.semi.trained())

    @property
    def evaluated(self) -> nn.Module:
        """The network that counts: the teacher, if there is one."""
        teacher = None if self.semi is None else self.semi.teacher
        return self.segmenter if teacher is None else teacher

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        lr: float = self.optimizer.param_groups[0]["lr"]
        return lr

    def train_step(self, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Take a step on a batch drawn from labelled slices; return the loss and its parts."""
        config, generator = self.config, self.generator
        set_lr(self.optimizer, warmup_cosine(self.step, config.steps, config.optim))
        index = torch.randint(len(images), (config.batch_size,), generator=generator)
        index = index.to(images.device)
        images, masks = augment(images[index], masks[index].long(), config.augment, generator)
        with autocast(images.device, config.precision):
            logits = self.segmenter(images).float()
        parts = {"supervised": supervised_loss(logits, masks, config.dice_weight)}
        if self.semi is not None:
            progress = self.step / config.steps
            parts |= self.semi(self.segmenter, images, masks, logits, progress)
        loss = torch.stack(list(parts.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.semi is not None:
            self.semi.after_step(self.segmenter)
        self.step += 1
        return {"loss": loss.detach(), **{name: x.detach() for name, x in parts.items()}}

    def keep_best(self, dice: float) -> None:
        """Keep the weights if their `dice` is the largest so far and the best are selected."""
        if self.config.select == "best" and (self.best is None or dice > self.best["dice"]):
            weights = {name: x.cpu().clone() for name, x in self.evaluated.state_dict().items()}
            self.best = {"dice": dice, "weights": weights}

    def select(self) -> None:
        """Give the network that counts the weights that were kept, if any were."""
        if self.best is not None:
            self.evaluated.load_state_dict(self.best["weights"])

    def state(self) -> dict[str, Any]:
        """Return what a restart needs."""
        return {
            "best": self.best,
            "model": self.segmenter.state_dict(),
            "semi": None if self.semi is None else self.semi.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        self.segmenter.load_state_dict(state["model"])
        if self.semi is not None:
            self.semi.load_state_dict(state["semi"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.step = state["step"]
        self.best = state["best"]


def run_name(init: Path) -> str:
    """Return the name of the pre-training run that `init`, its folder or file, belongs to."""
    return init.parent.name if init.suffix == ".safetensors" else init.name
