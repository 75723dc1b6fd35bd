"""The mean teacher: the student agrees with the average of its own past (arXiv:1703.01780)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim.swa_utils import AveragedModel

from spcl_fast.models import UNet
from spcl_fast.momentum import average_tensors
from spcl_fast.train.semi.term import Batch, Term


class MeanTeacher(Term):
    """Mean squared difference of the softmax of student and teacher on mirrored views.

    The weights and buffers of the teacher follow the student's. The decay grows as 1 - 1 / (t + 1)
    until it reaches `decay`, so that the first weights are forgotten.

    Args:
        student: The segmenter that is trained.
        decay: Of the moving average.
    """

    def __init__(self, student: UNet, decay: float) -> None:
        super().__init__()

        def average(
            teacher: Sequence[Tensor], values: Sequence[Tensor], num_averaged: Tensor | int
        ) -> None:
            average_tensors(teacher, values, min(decay, 1 - 1 / (int(num_averaged) + 1)))

        self.average = AveragedModel(student, multi_avg_fn=average, use_buffers=True).eval()
        self.average.requires_grad_(False)

    @property
    def model(self) -> UNet:
        """The teacher."""
        return cast(UNet, self.average.module)

    def train(self, mode: bool = True) -> MeanTeacher:
        """Leave the teacher in evaluation mode."""
        return self

    def trained(self) -> Iterable[nn.Parameter]:
        """Return nothing: the teacher is averaged."""
        return ()

    def forward(self, batch: Batch) -> Tensor:
        """Return the difference between the student on one view and the teacher on the other."""
        student, _ = batch.views.halves(batch.probabilities)
        _, mirrored = batch.views.images.chunk(2)
        with torch.no_grad(), batch.autocast():
            logits = self.average(mirrored).float()
        return mse_loss(student, logits.softmax(1).flip(batch.views.flipped))

    def after_step(self, student: UNet) -> None:
        """Move the teacher towards the student."""
        self.average.update_parameters(student)
