"""One step of the fine-tuning, and the network, terms and optimiser that it changes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from spcl_fast.devices import sent_to
from spcl_fast.precision import at_least_float32
from spcl_fast.segmentation.data.augment import augment
from spcl_fast.segmentation.data.slices import Slices
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.finetune.semi.loss import SemiLoss
from spcl_fast.segmentation.finetune.semi.term import Labelled
from spcl_fast.segmentation.finetune.supervised import supervised_loss
from spcl_fast.segmentation.networks import UNet
from spcl_fast.segmentation.runs.device import autocast
from spcl_fast.segmentation.runs.network import load_pretrained, make_network
from spcl_fast.segmentation.runs.optim import make_optimizer, set_lr, warmup_cosine
from spcl_fast.segmentation.runs.ranks import Ranks
from spcl_fast.segmentation.runs.sync_batch_norm import synchronised


class FinetuneLosses(nn.Module):
    """The segmenter and the terms of the loss.

    Args:
        segmenter: The network that is trained.
        semi: The terms on unlabelled slices, if there are any.
        config: The fine-tuning.
        ranks: The processes.
    """

    def __init__(
        self, segmenter: UNet, semi: SemiLoss | None, config: FinetuneConfig, ranks: Ranks
    ) -> None:
        super().__init__()
        self.segmenter, self.semi = segmenter, semi
        self.config, self.ranks = config, ranks
        self.supervised = supervised_loss
        if config.compile:
            ranks.compile(segmenter.encoder, segmenter.decoder)
            self.supervised = torch.compile(supervised_loss)

    def forward(self, images: Tensor, masks: Tensor, progress: float) -> dict[str, Tensor]:
        """Return the parts of the loss on labelled slices, the whole batch on every rank."""
        config, rows = self.config, self.ranks.rows(len(images))
        with autocast(images.device, config.precision):
            logits = at_least_float32(self.segmenter(rows.take(images)))
        loss = self.supervised(logits, rows.take(masks), config.dice_weight, self.ranks)
        parts = {"supervised": loss}
        if self.semi is not None:
            parts |= self.semi(self.segmenter, Labelled(images, masks, logits), progress)
        return parts


class FinetuneTrainer:
    """The state that a step of the fine-tuning changes."""

    def __init__(self, config: FinetuneConfig, slices: Slices, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.segmenter = make_network(config.model)
        if config.init is not None:
            load_pretrained(self.segmenter, config.init, config.model)
        self.segmenter.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.generator = torch.Generator().manual_seed(config.seed)
        self.ranks = Ranks.current()
        self.semi: SemiLoss | None = None
        if config.semi.weights:
            self.semi = SemiLoss(
                self.segmenter,
                slices,
                config.semi,
                config.augment,
                self.generator,
                config.precision,
                self.ranks,
            ).to(device)
        losses = FinetuneLosses(self.segmenter, self.semi, config, self.ranks)
        if config.sync_batch_norm:
            synchronised(losses, self.ranks, device)
        self.losses = self.ranks.parallel(losses, own_buffers=not config.sync_batch_norm)
        self.optimizer = make_optimizer(self._trained(), config.optim)
        self.step = 0
        self.best: dict[str, Any] | None = None  # Dice and weights, if the best are selected

    def _trained(self) -> Iterator[nn.Parameter]:
        return chain(self.segmenter.parameters(), () if self.semi is None else self.semi.trained())

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated: the mean teacher, if there is one."""
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
        index = sent_to(images.device, index)
        images, masks = augment(images[index], masks[index].long(), config.augment, generator)
        parts: dict[str, Tensor] = self.losses(images, masks, self.step / config.steps)
        loss = torch.stack(list(parts.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.semi is not None:
            self.semi.after_step(self.segmenter)
        self.step += 1
        return {"loss": loss.detach(), **{name: x.detach() for name, x in parts.items()}}

    def keep_best(self, dice: float) -> None:
        """Keep the weights if the best are selected and their `dice` is the largest so far."""
        if self.config.select == "best" and (self.best is None or dice > self.best["dice"]):
            weights = {name: x.cpu().clone() for name, x in self.evaluated.state_dict().items()}
            self.best = {"dice": dice, "weights": weights}

    def select(self) -> None:
        """Load the weights that `keep_best` kept, if any, into the network that is evaluated."""
        if self.best is not None:
            self.evaluated.load_state_dict(self.best["weights"])

    def state(self) -> dict[str, Any]:
        """Return the state for a restart."""
        return {
            "best": self.best,
            "model": self.segmenter.state_dict(),
            "semi": None if self.semi is None else self.semi.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Load what `state` returned."""
        self.segmenter.load_state_dict(state["model"])
        if self.semi is not None:
            self.semi.load_state_dict(state["semi"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.step = state["step"]
        self.best = state["best"]
