"""Stage 2: train the segmenter on a few labelled scans, from scratch or a pre-trained encoder.

    L = L_sup + lambda_con L_contrast + lambda_reg L_consistency

L_sup is cross-entropy plus soft Dice on labelled slices. The other two use all training slices
without their masks: the contrastive term of stage 1, and the mean squared difference between the
softmax of the student and of its mean teacher (arXiv:1703.01780) on two flips of one view.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from spcl_fast.data.augment import AugmentConfig, augment
from spcl_fast.models import UNet
from spcl_fast.train.contrast import LossConfig, make_heads
from spcl_fast.train.dataset import DataConfig, pick_labelled, split_scans, training_slices
from spcl_fast.train.device import Device, set_up_device
from spcl_fast.train.evaluate import evaluate_scans, slice_dice, summary_line, write_evaluation
from spcl_fast.train.network import ModelConfig, load_encoder, segmenter_metadata
from spcl_fast.train.optim import OptimConfig, finite_loss, make_optimizer, set_lr, warmup_cosine
from spcl_fast.train.progress import progress_bar, say
from spcl_fast.train.run import Run, save_weights
from spcl_fast.train.semi_supervised import Unlabelled, mean_teacher


@dataclass(frozen=True)
class FinetuneConfig:
    """Train the segmenter on a few labelled scans and evaluate it on the test scans.

    Attributes:
        out: Run folder.
        init: Run folder or encoder.safetensors of a pre-trained encoder; None is from scratch.
        labelled: Names of the labelled scans; empty means to pick `num_labelled`.
        num_labelled: Scans to pick, end-diastolic ones first.
        pick: Which pick.
        data: Scans and grid.
        model: Network.
        optim: Optimiser.
        augment: Augmentation of labelled and unlabelled slices.
        dice_weight: Weight of soft Dice beside cross-entropy; 0 in the paper.
        contrast_weight: lambda_con; 0 leaves the term out.
        teacher_weight: lambda_reg; 0 leaves the mean teacher out. With it the teacher is evaluated.
        teacher_decay: Decay of the teacher's moving average.
        loss: Contrastive loss of the semi-supervised stage.
        num_scans: Scans an unlabelled batch.
        steps: Optimiser steps.
        batch_size: Labelled slices a step.
        val_every: Steps between points of the validation curve.
        save_every: Steps between states.
        log_every: Steps between lines of the log.
        seed: Seed of the weights, the batches and the augmentation.
        device: "auto" takes CUDA where there is one.
        threads: CPU threads; 0 leaves torch's choice.
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
    contrast_weight: float = 0.0
    teacher_weight: float = 0.0
    teacher_decay: float = 0.999
    loss: LossConfig = field(default_factory=LossConfig)
    num_scans: int = 4
    steps: int = 12000
    batch_size: int = 10
    val_every: int = 500
    save_every: int = 500
    log_every: int = 10
    seed: int = 0
    device: Device = "auto"
    threads: int = 0
    deterministic: bool = False
    predictions: bool = True

    def __post_init__(self) -> None:
        """Check the counts and weights."""
        for name in ("steps", "batch_size", "val_every", "save_every", "log_every", "num_scans"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("dice_weight", "contrast_weight", "teacher_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


def finetune(config: FinetuneConfig, *, resume: bool = False) -> dict[str, Any]:
    """Train on the labelled scans, evaluate on the test scans; return the evaluation.

    Raises:
        DataError, ConfigError, CheckpointError, ValueError: One sentence for the user.
    """
    device = set_up_device(config.device, config.threads, deterministic=config.deterministic)
    split = split_scans(config.data)
    chosen = pick_labelled(
        split.train, names=config.labelled, count=config.num_labelled, pick=config.pick
    )
    is_semi = config.contrast_weight > 0 or config.teacher_weight > 0
    scans = split.train if is_semi else [split.train[i] for i in chosen]
    slices = training_slices(config.data, scans).to(device)
    labelled = slices.select(chosen) if is_semi else slices
    val = training_slices(config.data, split.val).to(device) if split.val else None

    torch.manual_seed(config.seed)
    segmenter = UNet(1, config.model.num_classes, config.model.max_channels)
    if config.init is not None:
        load_encoder(segmenter, config.init, config.model)
    segmenter.to(device)
    heads = nn.ModuleDict()
    if config.contrast_weight > 0:
        heads = make_heads(segmenter.encoder.channels[-1], config.loss).to(device)
    parts = nn.ModuleDict({"segmenter": segmenter, "heads": heads})
    teacher = mean_teacher(segmenter, config.teacher_decay) if config.teacher_weight > 0 else None
    optimizer = make_optimizer(parts.parameters(), config.optim)
    generator = torch.Generator().manual_seed(config.seed)
    unlabelled = Unlabelled(slices, config, generator) if is_semi else None
    step = 0

    run = Run.start(config.out, config, "finetune", resume=resume)
    if resume and (state := run.load_state()):
        parts.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if teacher is not None:
            teacher.load_state_dict(state["teacher"])
        generator.set_state(state["generator"])
        step = state["step"]
    evaluated: nn.Module = segmenter if teacher is None else teacher.module

    with progress_bar(f"finetune {run.name}", config.steps, step) as show:
        while step < config.steps:
            set_lr(optimizer, warmup_cosine(step, config.steps, config.optim))
            index = torch.randint(len(labelled), (config.batch_size,), generator=generator)
            index = index.to(device)
            images, masks = labelled.images[index], labelled.masks[index].long()
            images, masks = augment(images, masks, config.augment, generator)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = segmenter(images).float()
            loss = supervised_loss(logits, masks, config.dice_weight)
            if unlabelled is not None:
                loss = loss + unlabelled.loss(segmenter, heads, teacher, step / config.steps)

            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if teacher is not None:
                teacher.update_parameters(segmenter)

            step += 1
            if step % config.log_every == 0:  # the only device-to-host copy in the loop
                value = finite_loss(loss, step)
                run.log("step", step, loss=value, lr=optimizer.param_groups[0]["lr"])
                show(step, f"loss {value:.3f}")
            if val is not None and step % config.val_every == 0:
                dice = slice_dice(evaluated, val)
                run.log("val", step, dice=dice, dice_mean=sum(dice.values()) / len(dice))
            if step % config.save_every == 0 or step == config.steps:
                finite_loss(loss, step)
                run.save_state(
                    step,
                    model=parts.state_dict(),
                    optimizer=optimizer.state_dict(),
                    generator=generator.get_state(),
                    teacher=teacher.state_dict() if teacher is not None else None,
                )
    path = run.folder / "segmenter.safetensors"
    save_weights(path, evaluated.state_dict(), segmenter_metadata(config.model))
    folder = run.folder / "predictions" if config.predictions else None
    result = evaluate_scans(evaluated, split.test, config.data.grid, folder)
    result["labelled_scans"] = [split.train[i].name for i in chosen]
    result["initialised_from"] = None if config.init is None else run_name(config.init)
    write_evaluation(run.folder / "evaluation.json", result)
    run.close()
    say(f"{run.name}: {summary_line(result)}")
    return result


def run_name(init: Path) -> str:
    """Return the name of the pre-training run that `init`, its folder or file, belongs to."""
    return init.parent.name if init.suffix == ".safetensors" else init.name


def supervised_loss(logits: Tensor, masks: Tensor, dice_weight: float) -> Tensor:
    """Return cross-entropy plus `dice_weight` times the soft Dice loss of the foreground.

    Args:
        logits: (B, K, H, W).
        masks: (B, H, W) int64.
        dice_weight: Weight of the Dice term, which pools the batch and averages the classes.
    """
    loss = cross_entropy(logits, masks)
    if dice_weight == 0:
        return loss
    from monai.losses.dice import DiceLoss

    dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    overlap: Tensor = dice(logits, masks[:, None])
    return loss + dice_weight * overlap
