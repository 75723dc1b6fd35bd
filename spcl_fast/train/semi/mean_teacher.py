"""The mean teacher: the student agrees with the average of its own past (arXiv:1703.01780)."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from spcl_fast.models import UNet
from spcl_fast.momentum import momentum_update
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
        self.model = copy.deepcopy(student).requires_grad_(False).eval()
        self.decay = decay
        self.num_updates = 0

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
            logits = self.model(mirrored).float()
        return mse_loss(student, logits.softmax(1).flip(batch.views.flipped))

    def after_step(self, student: UNet) -> None:
        """Move the teacher towards the student."""
        momentum_update(self.model, student, min(self.decay, 1 - 1 / (self.num_updates + 1)))
        self.num_updates += 1

    def get_extra_state(self) -> dict[str, int]:
        """Return the number of updates, which the decay grows with."""
        return {"num_updates": self.num_updates}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Load what `get_extra_state` gave."""
        self.num_updates = state["num_updates"]
