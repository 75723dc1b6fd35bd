"""`positive_pair_loss` in Triton; the mathematics is in spcl_fast/ops/positive_pair_loss.py.

Rows are sorted by label once. A program owns rows and visits the columns between the first and the
last positive of any of them, so sums and gradients stay in registers: nothing is added across
programs, and every run gives the same bits. With gamma = inf and no window class sums replace the
pairs (spcl_fast/class_sums.py); on a GPU these add atomically unless
torch.use_deterministic_algorithms is on.

Memory: O(N D). Multiply-adds: (share of visited pairs) x N^2 D forward and twice that backward;
for D > 256 the backward computes the similarities once for every 256 features.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from spcl_fast.class_sums import Classes, class_sum_gradients, class_sum_loss
from spcl_fast.kernels._config_tables import POSITIVE_BACKWARD, POSITIVE_FORWARD
from spcl_fast.kernels._configs import pick
from spcl_fast.kernels._features import dot_block, dot_precision, gradient_block
from spcl_fast.kernels._positive_kernels import (
    positive_backward_kernel,
    positive_forward_kernel,
)
from spcl_fast.kernels._positive_tiles import as_scalar, sorted_rows
from spcl_fast.kernels._sorted_labels import Intervals, SortedLabels
from spcl_fast.kernels._tiles import device_of
from spcl_fast.operands import Gradients, Label, Pairs, PositivePairLoss
from spcl_fast.pair_weights import Mode, has_unit_weights


def positive_pair_loss_fwd(
    pairs: Pairs,
    lse: Tensor,  # (N,) float32
    label: Label,
    mode: Mode,
) -> PositivePairLoss:
    """Return loss and weight_sum, float32, and num_pos, int64, (N,) each."""
    z, refs, tau = pairs
    if has_unit_weights(label.gamma, label.window):
        classes = Classes(label.values, label.ref_values)
        return PositivePairLoss(*class_sum_loss(z, lse, refs, classes, tau))
    num_rows, dim = z.shape
    loss, weight_sum = lse.new_empty(num_rows), lse.new_empty(num_rows)
    num_pos = lse.new_empty(num_rows, dtype=torch.int64)
    if num_rows == 0:
        return PositivePairLoss(loss, weight_sum, num_pos)
    precision = dot_precision(z.dtype)
    block_d = gradient_block(dim, precision)
    config = pick("positive_pair_loss_fwd", POSITIVE_FORWARD, z.dtype, block_d, z.device)
    with device_of(z):
        order = SortedLabels(label.values, label.ref_values, label.window)
        rows, cols = sorted_rows(z, refs, order)
        positive_forward_kernel[(triton.cdiv(num_rows, config.block_m),)](
            rows,
            cols,
            lse[order.row_order],
            order.row_order,
            *order.row_intervals(),
            loss,
            weight_sum,
            num_pos,
            as_scalar(tau),
            as_scalar(label.gamma),
            num_rows,
            D=dim,
            BLOCK_K=dot_block(dim, precision),
            IS_HARD=mode == "hard",
            IS_SQUARE=order.is_square,
            PRECISION=precision,
            **config.launch_options(),
        )
    return PositivePairLoss(loss, weight_sum, num_pos)


def positive_pair_loss_bwd(
    c: Tensor,  # (N,) float32, dloss_i / |P(i)|
    pairs: Pairs,
    lse: Tensor,  # (N,)
    label: Label,
    mode: Mode,
    *,
    needs_z: bool,
    needs_refs: bool,
) -> Gradients:
    """Return dz (N, D) and drefs (M, D) with lse held fixed, as `z`, None where not needed."""
    z, refs, tau = pairs
    gamma = label.gamma
    if has_unit_weights(gamma, label.window):
        classes = Classes(label.values, label.ref_values)
        return Gradients(
            *class_sum_gradients(c, z, refs, classes, tau, needs_z=needs_z, needs_refs=needs_refs)
        )
    unscale = None
    if z.dtype == torch.float16:
        unscale, c = _fit_float16(c, pairs, lse, gamma, mode)
    with device_of(z):
        order = SortedLabels(label.values, label.ref_values, label.window)
        features, ref_features = sorted_rows(z, refs, order)
        rows = _Side(features, order.row_order, lse[order.row_order], c[order.row_order])
        cols = rows if refs is None else _Side(ref_features, order.col_order, None, None)
        how = (tau, gamma, unscale, mode)
        dz = drefs = None
        if needs_z:
            dz = _gradient(rows, cols, order.row_intervals(), *how)
        if needs_refs and refs is not None:
            drefs = _gradient(cols, rows, order.col_intervals(), *how)
    return Gradients(dz, drefs)


class _Side(NamedTuple):
    """Rows or columns, sorted by label."""

    features: Tensor  # (N, D)
    order: Tensor  # (N,) int64, the position of each before the sort
    lse: Tensor | None  # (N,), None if they have no losses
    c: Tensor | None  # (N,)


def _gradient(
    own: _Side,
    others: _Side,  # `own` itself if square
    intervals: Intervals,  # of `own`
    tau: float | Tensor,
    gamma: float | Tensor,
    unscale: Tensor | None,
    mode: Mode,
) -> Tensor:
    """Return the gradient of one side (N, D), in the order before the sort."""
    rows = own.features
    num_rows, dim = rows.shape
    gradient = torch.empty_like(rows)
    if gradient.numel() == 0:
        return gradient
    precision = dot_precision(rows.dtype)
    block_d = gradient_block(dim, precision)
    config = pick("positive_pair_loss_bwd", POSITIVE_BACKWARD, rows.dtype, block_d, rows.device)
    positive_backward_kernel[(triton.cdiv(num_rows, config.block_m), triton.cdiv(dim, block_d))](
        rows,
        others.features,
        own.lse,
        own.c,
        others.lse,
        others.c,
        own.order,
        *intervals,
        gradient,
        as_scalar(tau),
        as_scalar(gamma),
        unscale,
        num_rows,
        D=dim,
        BLOCK_D=block_d,
        BLOCK_K=dot_block(dim, precision),
        IS_HARD=mode == "hard",
        IS_SQUARE=others is own,
        PRECISION=precision,
        **config.launch_options(),
    )
    return gradient


def _fit_float16(
    c: Tensor, pairs: Pairs, lse: Tensor, gamma: float | Tensor, mode: Mode
) -> tuple[Tensor, Tensor]:
    """Return 1 / scale and scale c: |scale (c_i w_ij + c_j w_ji)| <= 2^14 where it is finite.

    A weight exceeds 1 if lse_i < s_ij, and the longest rows bound by how much.
    """
    z, refs, tau = pairs
    bound = 2 * _largest(c)
    if mode == "linear" and c.numel():
        longest = _largest(torch.linalg.vector_norm(z, dim=1, dtype=torch.float32))
        longest_ref = longest
        if refs is not None:
            longest_ref = _largest(torch.linalg.vector_norm(refs, dim=1, dtype=torch.float32))
        largest_sim = longest * longest_ref / tau
        least_lse = torch.where(lse.isfinite(), lse, math.inf).amin()
        bound = bound * (1 + (largest_sim - least_lse).clamp_min(0) / gamma)
    exponent = torch.frexp(bound).exponent.clamp(-100, 100)
    return torch.exp2(exponent - 14.0), c * torch.exp2(14.0 - exponent)


def _largest(x: Tensor) -> Tensor:
    """Return the largest finite |x|: rows that are not finite must not affect the others."""
    if x.numel() == 0:
        return x.new_zeros(())
    return torch.where(x.isfinite(), x.abs(), 0).amax()
