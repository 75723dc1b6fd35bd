"""Optimiser and learning-rate schedule of both stages."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser settings.

    Attributes:
        name: Optimiser; the paper's is RAdam.
        lr: Peak learning rate.
        lr_final: Learning rate at the last step.
        weight_decay: As the optimiser defines it.
        warmup: Share of all steps over which the learning rate warms up linearly.
    """

    name: Literal["radam", "adamw"] = "radam"
    lr: float = 2e-4
    lr_final: float = 1e-7
    weight_decay: float = 1e-5
    warmup: float = 0.125

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be finite and above 0, got {self.lr}")
        for name in ("lr_final", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup must be in [0, 1], got {self.warmup}")


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter], config: OptimConfig
) -> torch.optim.Optimizer:
    """Return the optimiser that `config` names."""
    kind = torch.optim.RAdam if config.name == "radam" else torch.optim.AdamW
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay)


def warmup_cosine(step: int, steps: int, config: OptimConfig) -> float:
    """Return the learning rate of `step`: linear rise, then a half cosine to `lr_final`."""
    warmup = int(config.warmup * steps)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    half_cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr_final + (config.lr - config.lr_final) * half_cosine


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def finite_loss(loss: Tensor, step: int) -> float:
    """Return the value of `loss`, a copy to the host.

    Raises:
        FloatingPointError: It is NaN or infinite; the steps since the last saved state are lost.
    """
    value = float(loss.detach())
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value} at step {step}: try a lower learning rate")
    return value
