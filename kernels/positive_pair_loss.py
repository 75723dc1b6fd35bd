"""`positive_pair_loss` in Triton; the mathematics is in spcl_fast/ops/positive_pair_loss.py.

Rows are ordered by label once. A program owns rows and visits the columns between the first and the
last positive of any of them, so sums and gradients stay in registers: nothing is added across
programs, and every run gives the same bits. With gamma = inf and no window class sums replace the
pairs (kernels/_class_kernels.py).

Memory: O(N D). Multiply-adds: (share of visited pairs) x N^2 D forward and twice that backward;
for wide rows the backward computes the similarities once for every block of features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spcl_fast.kernels._bound import cdiv
from spcl_fast.kernels._class_sums import add_class_gradient, fill_class_losses
from spcl_fast.kernels._config_tables import POSITIVE_BACKWARD, POSITIVE_FORWARD
from spcl_fast.kernels._configs import pick
from spcl_fast.kernels._order import Order, order_of
from spcl_fast.kernels._positive_kernels import (
    positive_backward_kernel,
    positive_forward_kernel,
)
from spcl_fast.kernels._similarities import PlanePairs, as_scalar, device_of
from spcl_fast.operands import Gradients, Label, Pairs, PositivePairLoss
from spcl_fast.pair_weights import Mode, has_unit_weights

# Of wide rows, the columns of a gradient that one program owns, by number of planes.
_GRADIENT_BLOCK = {1: 256, 2: 128, 3: 128}


def positive_pair_loss_fwd(
    pairs: Pairs,
    lse: Tensor,  # (N,) float32
    label: Label,
    mode: Mode,
) -> PositivePairLoss:
    """Return loss and weight_sum, float32, and num_pos, int64, (N,) each."""
    num_rows = pairs.z.shape[0]
    loss = torch.empty(num_rows, dtype=torch.float32, device=lse.device)
    num_pos = torch.empty_like(loss, dtype=torch.int64)
    out = PositivePairLoss(loss, torch.empty_like(loss), num_pos)
    if pairs.z.numel() == 0 or (pairs.refs is not None and pairs.refs.numel() == 0):
        return PositivePairLoss(*(x.zero_() for x in out))
    with device_of(pairs.z):
        order = order_of(label.values, label.ref_values, label.window)
        fill_losses(PlanePairs.of(*pairs), lse.contiguous(), label, order, mode, out)
    return out


def fill_losses(
    pairs: PlanePairs,
    lse: Tensor,  # (N,) float32, contiguous
    label: Label,
    order: Order,
    mode: Mode,
    out: PositivePairLoss,
    sums: Tensor | None = None,  # of blocks of columns, if known
) -> None:
    """Fill the losses of the rows under a label, contiguous."""
    if has_unit_weights(label.gamma, label.window):
        fill_class_losses(pairs, lse, order, sums, out)
        return
    rows, N = pairs.rows, pairs.num_rows
    constants = {"DP": rows.padded_dim, "P": rows.num_planes, "EXCLUDES_SELF": pairs.excludes_self}
    config = pick("positive_pair_loss_fwd", POSITIVE_FORWARD, rows, lse.device)
    positive_forward_kernel[(cdiv(N, config.block_m),)](
        *pairs.planes(),
        lse,
        *order,
        *out,
        as_scalar(pairs.tau),
        as_scalar(label.gamma),
        N,
        BLOCK_D=rows.step if rows.is_wide else rows.padded_dim,
        IS_HARD=mode == "hard",
        **constants,
        **config.launch_options(),
    )


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
    z, refs, _ = pairs
    if z.numel() == 0 or (refs is not None and refs.numel() == 0):
        drefs = torch.zeros_like(refs) if needs_refs and refs is not None else None
        return Gradients(torch.zeros_like(z) if needs_z else None, drefs)
    dz = drefs = None
    with device_of(z):
        order = order_of(label.values, label.ref_values, label.window)
        planes = PlanePairs.of(*pairs)
        bound = torch.linalg.vector_norm(torch.where(c.isfinite(), c, 0), float("inf"))
        lse, c = lse.contiguous(), c.contiguous()
        losses = Losses(lse, c, bound)
        if needs_z:
            dz = z.new_empty(z.shape)
            sides = losses, losses if refs is None else None
            add_gradient(planes, order, *sides, label, mode, parts=dz.unsqueeze(0)[:0], dz=dz)
        if needs_refs and refs is not None:
            drefs = refs.new_empty(refs.shape)
            swapped, other_order = planes.swapped(), Order(order.cols, order.rows)
            parts = drefs.unsqueeze(0)[:0]
            add_gradient(swapped, other_order, None, losses, label, mode, parts=parts, dz=drefs)
    return Gradients(dz, drefs)


class Losses(NamedTuple):
    """What a gradient needs of the side of the losses, float32, contiguous."""

    lse: Tensor  # (N,)
    c: Tensor  # (N,) dloss_i / |P(i)|
    bound: Tensor  # () of |c|


def add_gradient(
    pairs: PlanePairs,
    order: Order,
    losses: Losses | None,  # of the rows
    col_losses: Losses | None,  # of the columns, the first ones if not of all
    label: Label,
    mode: Mode,
    *,
    parts: Tensor,  # (parts, N, D)
    dz: Tensor,  # (N, D), out; may be the first part
) -> None:
    """Fill dz with the sum of the parts and the gradient of the losses of a label."""
    rows, N = pairs.rows, pairs.num_rows
    lse, c, bound = (None, None, None) if losses is None else losses
    col_lse, col_c, bound = (None, None, bound) if col_losses is None else col_losses
    if has_unit_weights(label.gamma, label.window):
        add_class_gradient(pairs, order, c, col_c, None, is_even=False, parts=parts, dz=dz)
        return
    num_col_c = 0 if col_c is None else col_c.shape[0]
    given = (*order, parts, dz)
    sizes = parts.shape[0], N, num_col_c, rows.dim
    constants = {"DP": rows.padded_dim, "P": rows.num_planes, "EXCLUDES_SELF": pairs.excludes_self}
    block_d = rows.padded_dim if not rows.is_wide else _GRADIENT_BLOCK[rows.num_planes]
    config = pick("positive_pair_loss_bwd", POSITIVE_BACKWARD, rows, dz.device)
    grid = cdiv(N, config.block_m), cdiv(rows.padded_dim, block_d)
    positive_backward_kernel[grid](
        *pairs.planes(),
        lse,
        c,
        col_lse,
        col_c,
        *given,
        bound,
        as_scalar(pairs.tau),
        as_scalar(label.gamma),
        *sizes,
        BLOCK_D=block_d,
        STEP=rows.step,
        IS_HARD=mode == "hard",
        **constants,
        **config.launch_options(),
    )
