"""Kernels of `positive_pair_loss`; the mathematics is in spcl_fast/ops/positive_pair_loss.py.

A program owns rows in the order of their labels and visits the columns between the first and the
last positive of any of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spcl_fast.kernels._bound import bound
from spcl_fast.kernels._plane_products import (
    add_weighted,
    load_planes,
    products,
    products_by_steps,
)
from spcl_fast.kernels._row_weights import gradient_scale
from spcl_fast.kernels._similarities import inverse, scalar


@triton.jit
def columns_to_visit(first, last):
    """Return begin and end of the smallest range of columns that holds the intervals of all rows.

    If all are empty, begin is end: prefetched addresses would overflow from 2^31 - 1 on.
    """
    end = tl.max(last, 0)
    begin = tl.min(tl.where(last > first, first, 2147483647), 0)
    return tl.minimum(begin, end), end


@triton.jit
def positive_dots(
    z_ptr, z_i, i, is_row, plane, cols_ptr, z_j, j, is_col, col_plane, DP: tl.constexpr,
    BLOCK_D: tl.constexpr, P: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Return z_i . z_j, (rows, cols), read again where z_i and z_j hold a part of a row."""
    if BLOCK_D == DP:
        return products(z_i, z_j, P, IS_FINITE=False)
    return products_by_steps(
        z_ptr, i, is_row, plane, cols_ptr, j, is_col, col_plane, DP, STEP, P, IS_FINITE=False
    )


@triton.jit
def is_positive(i, j, col, first, last, EXCLUDES_SELF: tl.constexpr):
    """Return which pairs are positive, (rows, cols), for columns j at sorted positions col."""
    inside = (col[None, :] >= first[:, None]) & (col[None, :] < last[:, None])
    if EXCLUDES_SELF:
        inside &= j[None, :] != i[:, None]
    return inside


@triton.jit
def _pair_weight(loss_ij, gamma, IS_HARD: tl.constexpr):
    """Return w_ij of spcl_fast/pair_weights.py, in [0, 1] or NaN where it has NaN."""
    if IS_HARD:
        return tl.where(loss_ij <= gamma, 1.0, tl.where(gamma == gamma, 0.0, float("nan")))
    return tl.clamp(1.0 - loss_ij * (1.0 / gamma), 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)


@bound
@triton.jit
def positive_forward_kernel(
    z_ptr,  # (P, N, DP)
    cols_ptr,  # (P, M, DP)
    plane,  # stride
    col_plane,
    lse_ptr,  # (N,)
    side_ptr,  # (3, N), the rows' side of the order
    col_order_ptr,  # (M,) column at each sorted position
    loss_ptr,  # (N,) not sorted, like the next two
    weight_sum_ptr,
    num_pos_ptr,
    tau,  # number or pointer
    gamma,  # number or pointer
    N,
    DP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    P: tl.constexpr,
    IS_HARD: tl.constexpr,
    EXCLUDES_SELF: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """loss_i = sum_j w_ij l_ij / |P(i)| over the positives j of BLOCK_M rows."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = row < N
    i = tl.load(side_ptr + row, mask=is_row, other=0)
    d = tl.arange(0, BLOCK_D)
    first = tl.load(side_ptr + N + row, mask=is_row, other=0)
    last = tl.load(side_ptr + 2 * N + row, mask=is_row, other=0)
    lse_i = tl.load(lse_ptr + i, mask=is_row, other=0.0)
    inv_tau, gamma = inverse(scalar(tau)), scalar(gamma)
    z_i = load_planes(z_ptr, i, is_row, d, plane, DP, BLOCK_D, P)

    loss_sum = tl.zeros((BLOCK_M,), tl.float32)
    weight_sum = tl.zeros((BLOCK_M,), tl.float32)
    begin, end = columns_to_visit(first, last)
    for col_0 in range(begin, end, BLOCK_N):
        col = col_0 + tl.arange(0, BLOCK_N)
        j = tl.load(col_order_ptr + col, mask=col < end, other=0)
        z_j = load_planes(cols_ptr, j, col < end, d, col_plane, DP, BLOCK_D, P)
        dots = positive_dots(
            z_ptr, z_i, i, is_row, plane, cols_ptr, z_j, j, col < end, col_plane, DP, BLOCK_D, P,
            BLOCK_D,
        )  # fmt: skip
        loss_ij = lse_i[:, None] - dots * inv_tau
        w_ij = _pair_weight(loss_ij, gamma, IS_HARD)
        positive = is_positive(i, j, col, first, last, EXCLUDES_SELF)
        weight_sum += tl.sum(tl.where(positive, w_ij, 0.0), 1)
        loss_sum += tl.sum(tl.where(positive, w_ij * loss_ij, 0.0), 1)

    num_pos = tl.where(last > first, last - first - (1 if EXCLUDES_SELF else 0), 0)
    tl.store(loss_ptr + i, loss_sum / tl.maximum(num_pos, 1).to(tl.float32), mask=is_row)
    tl.store(weight_sum_ptr + i, weight_sum, mask=is_row)
    tl.store(num_pos_ptr + i, num_pos.to(tl.int64), mask=is_row)


@triton.jit
def _add_parts(total, parts_ptr, num_parts, part, offsets, mask):
    for k in range(num_parts):
        parts = parts_ptr + tl.full((), k, tl.int64) * part
        total += tl.load(parts + offsets, mask=mask, other=0.0).to(tl.float32)
    return total


@triton.jit
def summed_parts(parts_ptr, num_parts, part, offsets, mask):
    """Return the sum of parts of dz, in order, float32; part is the stride between them."""
    total = tl.zeros(offsets.shape, tl.float32)
    return _add_parts(total, parts_ptr, num_parts, part, offsets, mask)


@bound
@triton.jit
def positive_backward_kernel(
    z_ptr,  # (P, N, DP)
    cols_ptr,  # (P, M, DP)
    plane,  # stride
    col_plane,
    lse_ptr,  # (N,); None if only columns have losses
    c_ptr,
    col_lse_ptr,  # (M,); None if only rows have losses
    col_c_ptr,
    side_ptr,  # (3, N), the rows' side of the order
    col_order_ptr,  # (M,) column at each sorted position
    parts_ptr,  # (num_parts, N, D) of what is added
    dz_ptr,  # (N, D) not sorted, contiguous; may be parts_ptr
    bound_ptr,  # () float32, of |c| on both sides
    tau,  # number or pointer
    gamma,  # number or pointer
    num_parts,
    N,
    num_col_c,  # columns with losses: the first ones
    D,
    DP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    P: tl.constexpr,
    STEP: tl.constexpr,  # features of a step where BLOCK_D is not DP
    IS_HARD: tl.constexpr,
    EXCLUDES_SELF: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dz_i = parts - sum_j h_ij z_j / tau, h_ij = c_i w_ij + c_j w_ji, for BLOCK_M x BLOCK_D."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = row < N
    i = tl.load(side_ptr + row, mask=is_row, other=0)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    first = tl.load(side_ptr + N + row, mask=is_row, other=0)
    last = tl.load(side_ptr + 2 * N + row, mask=is_row, other=0)
    tau, gamma = scalar(tau), scalar(gamma)
    inv_tau = inverse(tau)
    scale = gradient_scale(tl.load(bound_ptr))
    if c_ptr is not None:
        lse_i = tl.load(lse_ptr + i, mask=is_row, other=0.0)
        c_i = tl.load(c_ptr + i, mask=is_row, other=0.0) * scale
    z_i = load_planes(z_ptr, i, is_row, d, plane, DP, BLOCK_D, P)

    dz = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    begin, end = columns_to_visit(first, last)
    for col_0 in range(begin, end, BLOCK_N):
        col = col_0 + tl.arange(0, BLOCK_N)
        j = tl.load(col_order_ptr + col, mask=col < end, other=0)
        z_j = load_planes(cols_ptr, j, col < end, d, col_plane, DP, BLOCK_D, P)
        dots = positive_dots(
            z_ptr, z_i, i, is_row, plane, cols_ptr, z_j, j, col < end, col_plane, DP, BLOCK_D, P,
            STEP,
        )  # fmt: skip
        sim = dots * inv_tau
        h_ij = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if c_ptr is not None:
            h_ij += c_i[:, None] * _pair_weight(lse_i[:, None] - sim, gamma, IS_HARD)
        if col_c_ptr is not None:
            has_loss = (col < end) & (j < num_col_c)
            lse_j = tl.load(col_lse_ptr + j, mask=has_loss, other=0.0)
            c_j = tl.load(col_c_ptr + j, mask=has_loss, other=0.0) * scale
            weight_ji = _pair_weight(lse_j[None, :] - sim, gamma, IS_HARD)
            h_ij += tl.where(has_loss[None, :], c_j[None, :] * weight_ji, 0.0)
        h_ij = tl.where(is_positive(i, j, col, first, last, EXCLUDES_SELF), h_ij, 0.0)
        dz = add_weighted(h_ij, z_j, dz, P)

    offsets = i.to(tl.int64)[:, None] * D + d[None, :]
    mask = is_row[:, None] & (d < D)[None, :]
    # A sum beside dz would take as many registers again.
    dz *= -1.0 / (tau * scale)
    dz = _add_parts(dz, parts_ptr, num_parts, tl.full((), N, tl.int64) * D, offsets, mask)
    tl.store(dz_ptr + offsets, dz.to(dz_ptr.dtype.element_ty), mask=mask)
