"""`positive_pair_loss` of pairs of equal index: two views, an image and its text."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spcl_fast.operands import PositivePairLoss
from spcl_fast.ops._impl import Impl
from spcl_fast.ops.positive_pair_loss import positive_pair_loss


def diagonal_pairs(
    z: Tensor, lse: Tensor, refs: Tensor, tau: float | Tensor, impl: Impl
) -> PositivePairLoss:
    """Compute lse_i - z_i . r_i / tau; the class sums of one row each cost O((N + M) D).

    Args:
        z: (N, D), floating.
        lse: (N,), from `pair_lse` over the references.
        refs: (M, D); the positive of row i is reference i, and the others are positives of no row.
        tau: temperature.
        impl: implementation of the op.
    """
    index = torch.arange(max(z.shape[0], refs.shape[0]), device=z.device)
    return positive_pair_loss(
        z,
        lse,
        index[: z.shape[0]],
        tau=tau,
        gamma=math.inf,
        mode="linear",
        refs=refs,
        ref_labels=index[: refs.shape[0]],
        impl=impl,
    )
