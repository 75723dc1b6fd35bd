"""The terms of the fine-tuning loss that need no masks: contrast and mean teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim.swa_utils import AveragedModel

from spcl_fast.data.augment import augment
from spcl_fast.data.sampler import GroupSampler
from spcl_fast.data.slices import Slices
from spcl_fast.models import UNet
from spcl_fast.momentum import average_tensors
from spcl_fast.train.contrast import contrastive_step, label_columns

if TYPE_CHECKING:
    from spcl_fast.train.finetune import FinetuneConfig

FLIP_PROBABILITY = 0.8  # of each axis, between the views of student and teacher; the authors'


def mean_teacher(student: UNet, decay: float) -> AveragedModel:
    """Return a teacher whose weights and buffers follow the student's.

    The decay grows as 1 - 1 / (t + 1) until it reaches `decay`, so that the first weights are
    forgotten.
    """

    def average(
        teacher: Sequence[Tensor], values: Sequence[Tensor], num_averaged: Tensor | int
    ) -> None:
        average_tensors(teacher, values, min(decay, 1 - 1 / (int(num_averaged) + 1)))

    return AveragedModel(student, multi_avg_fn=average, use_buffers=True).eval()


class Unlabelled:
    """The terms of the loss that need no masks."""

    def __init__(self, slices: Slices, config: FinetuneConfig, generator: torch.Generator) -> None:
        self.slices, self.config, self.generator = slices, config, generator
        partitions = config.loss.num_partitions
        self.columns = label_columns(slices, config.loss)
        self.sample = GroupSampler(
            slices.scan,
            slices.slice_index,
            slices.num_slices,
            num_scans=config.num_scans,
            num_partitions=partitions,
            slices_per_partition=1,
            generator=generator,
        )

    def loss(
        self,
        student: UNet,
        heads: nn.ModuleDict,
        teacher: AveragedModel | None,
        progress: float,
    ) -> Tensor:
        """Return lambda_con L_contrast + lambda_reg L_consistency on a batch of slices."""
        config = self.config
        index = self.sample().to(self.slices.images.device)
        index = torch.cat([index, index])
        views, _ = augment(self.slices.images[index], None, config.augment, self.generator)
        device = views.device.type
        total = views.new_zeros(())
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            features = student.encode(views)
        if config.contrast_weight > 0:
            labels = {name: column[index] for name, column in self.columns.items()}
            out = contrastive_step(features[-1], labels, heads, progress, config.loss)
            total = total + config.contrast_weight * out.loss
        if teacher is not None:
            axes = [
                a for a in (2, 3) if torch.rand((), generator=self.generator) < FLIP_PROBABILITY
            ]
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                logits = student.decode(features)
                with torch.no_grad():
                    target = teacher(views.flip(axes)).flip(axes)
            difference = mse_loss(logits.float().softmax(1), target.float().softmax(1))
            total = total + config.teacher_weight * difference
        return total
