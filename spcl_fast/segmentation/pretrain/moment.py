"""The pair weights of the first meta-label at one moment of a pre-training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spcl_fast.ops import pair_lse
from spcl_fast.pair_weights import pair_weights
from spcl_fast.reference import positive_mask
from spcl_fast.segmentation.networks.evaluation_mode import evaluation_mode
from spcl_fast.segmentation.pretrain.contrast import gamma_of
from spcl_fast.segmentation.pretrain.loss_config import LossConfig


class BatchPairs(NamedTuple):
    """The pairs (i, j) of some rows.

    Attributes:
        similarity: (n, n) z_i . z_j / tau.
        loss: (n, n) l_ij.
        weight: (n, n) w_ij, whether the pair is positive or not.
        positive: (n, n) bool; pairs (i, i) are excluded.
        gamma: The pace.
    """

    similarity: Tensor
    loss: Tensor
    weight: Tensor
    positive: Tensor
    gamma: float | Tensor


@dataclass(frozen=True)
class Moment:
    """A moment of the training, for the first meta-label of the loss.

    Attributes:
        step: Steps taken.
        progress: Share of the training that is done, 0 to 1; sets the pace.
        num_rows: Rows of a batch of the training.
        head: Projection head of the label; evaluated in evaluation mode.
        config: The loss.
    """

    step: int
    progress: float
    num_rows: int
    head: nn.Module
    config: LossConfig

    @torch.no_grad()
    def pairs(self, maps: Tensor, labels: Tensor, shown: int | None = None) -> BatchPairs:
        """Return the pairs of a batch.

        Args:
            maps: (N, C, h, w), the encoder's last map.
            labels: (N,) of the first meta-label.
            shown: If given, return only the pairs among the first `shown` rows; the denominators
                are still those of all N.
        """
        config, name = self.config, self.config.labels[0]
        with evaluation_mode(self.head):
            z = self.head(maps.float())
        gamma = gamma_of(name, z, labels, self.progress, config)
        lse = pair_lse(z, config.tau, impl=config.impl)
        z, lse, labels = z[:shown], lse[:shown], labels[:shown]
        similarity = z @ z.T / config.tau
        loss = lse[:, None] - similarity
        weight = pair_weights(loss, gamma, config.mode)
        positive = positive_mask(labels, None, config.window_of(name))
        return BatchPairs(similarity, loss, weight, positive, gamma)
