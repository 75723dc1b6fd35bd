"""Dense `positive_pair_loss`."""

from __future__ import annotations

import torch
from torch import Tensor

from spcl_fast.operands import Label, Pairs, PositivePairLoss
from spcl_fast.pair_weights import Mode, pair_weights
from spcl_fast.precision import accumulator_dtype, at_least_float32


def positive_mask(labels: Tensor, ref_labels: Tensor | None, window: float | None) -> Tensor:
    """Return which pairs are positive.

    Args:
        labels: (N,), below 0 or NaN where unknown.
        ref_labels: (M,), or None for the pairs j != i of `labels` with itself.
        window: None for equality, else |y_i - y_j| <= window, evaluated in float64.

    Returns:
        (N, M) bool.
    """
    others = labels if ref_labels is None else ref_labels
    if window is None:
        positive = labels[:, None] == others
    else:
        exact = accumulator_dtype(labels.device)
        positive = (labels.to(exact)[:, None] - others.to(exact)).abs() <= window
    positive &= (labels >= 0)[:, None] & (others >= 0)
    return positive.fill_diagonal_(False) if ref_labels is None else positive


def pair_losses(pairs: Pairs, lse: Tensor) -> Tensor:
    """Return l_ij = lse_i - sim_ij, (N, M)."""
    z = at_least_float32(pairs.z)
    others = z if pairs.refs is None else at_least_float32(pairs.refs)
    return lse.to(z.dtype)[:, None] - z @ others.T / pairs.tau


def positive_pair_loss(
    pairs: Pairs,
    lse: Tensor,  # (N,)
    label: Label,
    mode: Mode,
) -> PositivePairLoss:
    """Return loss, weight_sum, num_pos, (N,) each, as `spcl_fast.ops.positive_pair_loss`."""
    pair_loss = pair_losses(pairs, lse)
    positive = positive_mask(label.values, label.ref_values, label.window)
    weight = torch.where(positive, pair_weights(pair_loss, label.gamma, mode), 0)
    num_pos = positive.sum(1)
    loss = torch.where(positive, weight * pair_loss, 0).sum(1) / num_pos.clamp_min(1)
    return PositivePairLoss(loss, weight.sum(1), num_pos)
