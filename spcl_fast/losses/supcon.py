"""The supervised contrastive loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor, nn

from spcl_fast.losses.result import ContrastiveLossOutput
from spcl_fast.losses.self_paced import SelfPacedContrastiveLoss
from spcl_fast.ops import Impl

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class SupConLoss(nn.Module):
    """Supervised contrastive loss (arXiv:2004.11362, L_out): self-paced with gamma = inf.

        L = mean_i 1/|P(i)| sum_{j in P(i)} (lse_i - z_i . z_j / tau)     over rows with positives

    The positive pairs cost O(N D); only lse is quadratic.

    Example:
        >>> loss = SupConLoss(tau=0.1)
        >>> loss(z, labels).loss.backward()

    Args:
        tau: temperature.
        learnable_tau: make log tau a parameter that starts at `tau`.
        impl: implementation of the ops.
        group: process group whose ranks bring the rows of one batch together, as for
            `SelfPacedContrastiveLoss`; None for this process alone.

    Raises:
        ValueError: `tau` is not finite and above 0.
    """

    def __init__(
        self,
        tau: float = 0.07,
        *,
        learnable_tau: bool = False,
        impl: Impl = "auto",
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.self_paced = SelfPacedContrastiveLoss(
            tau, learnable_tau=learnable_tau, impl=impl, group=group
        )

    def forward(
        self,
        z: Tensor,
        labels: Tensor,
        *,
        bank: Tensor | None = None,
        bank_labels: Tensor | None = None,
    ) -> ContrastiveLossOutput:
        """Compute the loss.

        Args:
            z: (N, D), floating, rows L2-normalised by the caller.
            labels: (N,), integer, below 0 where unknown.
            bank: (M, D), as for `SelfPacedContrastiveLoss`.
            bank_labels: (M,), with `bank`.

        Returns:
            A `ContrastiveLossOutput`; its loss is differentiable in `z`, `bank` and a learnable
            tau.

        Raises:
            TypeError: a dtype does not fit.
            ValueError: a shape or a device does not fit.
        """
        out: ContrastiveLossOutput = self.self_paced(
            z, labels, math.inf, bank=bank, bank_labels=bank_labels
        )
        return out
