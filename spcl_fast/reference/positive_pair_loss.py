"""Dense `positive_pair_loss`."""

from __future__ import annotations

import torch
from torch import Tensor

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


def positive_pair_loss(
    z: Tensor,
    lse: Tensor,
    labels: Tensor,
    *,
    tau: float | Tensor,
    gamma: float | Tensor,
    mode: Mode,
    window: float | None = None,
    refs: Tensor | None = None,
    ref_labels: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, weight_sum, num_pos, (N,) each, as `spcl_fast.ops.positive_pair_loss`."""
    z = at_least_float32(z)
    others = z if refs is None else at_least_float32(refs)
    pair_loss = lse.to(z.dtype)[:, None] - z @ others.T / tau  # (N, M)
    positive = positive_mask(labels, ref_labels, window)
    weight = torch.where(positive, pair_weights(pair_loss, gamma, mode), 0)
    num_pos = positive.sum(1)
    loss = torch.where(positive, weight * pair_loss, 0).sum(1) / num_pos.clamp_min(1)
    return loss, weight.sum(1), num_pos
