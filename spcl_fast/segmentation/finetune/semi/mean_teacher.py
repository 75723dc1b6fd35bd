"""The mean teacher: consistency with a moving average of the student (arXiv:1703.01780)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from spcl_fast.momentum import momentum_update
from spcl_fast.precision import at_least_float32
from spcl_fast.segmentation.finetune.semi.term import Batch, Term
from spcl_fast.segmentation.networks import UNet


class MeanTeacher(Term):
    """Mean squared difference of the softmax of student and teacher on mirrored views.

    The weights and buffers of the teacher are moving averages of the student's. The decay grows as
    1 - 1 / (t + 1) until it reaches `decay`, so that the initial weights are soon forgotten. During
    the first share `ramp` of the training the term rises as exp(-5 (1 - t)^2), that paper's
    ramp-up, since the teacher's first predictions are useless.

    Args:
        student: The segmenter that is trained.
        decay: Decay of the moving average.
        ramp: Share of the training during which the term rises; 0 means no ramp.
    """

    def __init__(self, student: UNet, decay: float, ramp: float = 0.0) -> None:
        super().__init__()
        self.model = copy.deepcopy(student).requires_grad_(False).eval()
        self.decay, self.ramp = decay, ramp
        self.num_updates = 0

    def train(self, mode: bool = True) -> MeanTeacher:
        """Keep the teacher in evaluation mode."""
        return self

    def trained(self) -> Iterable[nn.Parameter]:
        """Return nothing: the teacher is averaged."""
        return ()

    def forward(self, batch: Batch) -> Tensor:
        """Return the difference between the student on one view and the teacher on the other."""
        student, _ = batch.views.halves(batch.probabilities)
        _, mirrored = batch.views.images.chunk(2)
        with torch.no_grad(), batch.autocast():
            logits = at_least_float32(self.model(mirrored))
        value = batch.rows.mean(mse_loss(student, logits.softmax(1).flip(batch.views.flipped)))
        t = min(1.0, batch.progress / self.ramp) if self.ramp else 1.0
        return value * math.exp(-5 * (1 - t) ** 2)

    def after_step(self, student: UNet) -> None:
        """Update the teacher's moving average."""
        momentum_update(self.model, student, min(self.decay, 1 - 1 / (self.num_updates + 1)))
        self.num_updates += 1

    def get_extra_state(self) -> dict[str, int]:
        """Return the number of updates, which sets the decay."""
        return {"num_updates": self.num_updates}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Load what `get_extra_state` returned."""
        self.num_updates = state["num_updates"]
