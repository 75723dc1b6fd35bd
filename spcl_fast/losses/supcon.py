"""The supervised contrastive loss."""

from __future__ import annotations

import math

from torch import Tensor, nn

from spcl_fast.losses.result import ContrastiveLossOutput
from spcl_fast.losses.self_paced import SelfPacedContrastiveLoss
from spcl_fast.ops import Impl


class SupConLoss(nn.Module):
    """Supervised contrastive loss (arXiv:2004.11362, L_out), the self-paced one at gamma = inf.

        L = mean_i 1/|P(i)| sum_{j in P(i)} (lse_i - z_i . z_j / tau)     over rows with positives

    The positive pairs cost O(N D): only lse is quadratic.

    Example:
        >>> loss = SupConLoss(tau=0.1)
        >>> loss(z, labels).loss.backward()

    Args:
        tau: temperature.
        learnable_tau: make log tau a parameter that starts at `tau`.
        impl: implementation of the ops.

    Raises:
        ValueError: `tau` is not finite and above 0.
    """

    def __init__(
        self, tau: float = 0.07, *, learnable_tau: bool = False, impl: Impl = "auto"
    ) -> None:
        super().__init__()
        self.self_paced = SelfPacedContrastiveLoss(tau, learnable_tau=learnable_tau, impl=impl)

    def forward(self, z: Tensor, labels: Tensor) -> ContrastiveLossOutput:
        """Compute the loss.

        Args:
            z: (N, D), floating, rows L2-normalised by the caller.
            labels: (N,), integer, below 0 where unknown.

        Returns:
            A `ContrastiveLossOutput`; its loss is differentiable in `z` and a learnable tau.

        Raises:
            TypeError: a dtype does not fit.
            ValueError: a shape or a device does not fit.
        """
        out: ContrastiveLossOutput = self.self_paced(z, labels, math.inf)
        return out
