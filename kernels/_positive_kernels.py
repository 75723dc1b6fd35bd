"""Kernels of `positive_pair_loss`; the mathematics is in spcl_fast/ops/positive_pair_loss.py."""

from __future__ import annotations

import triton
import triton.language as tl

from spcl_fast.kernels._positive_tiles import columns_to_visit, is_positive
from spcl_fast.kernels._tiles import dots_by_blocks, load_tile, scalar


@triton.jit
def _pair_weight(loss_ij, gamma, IS_HARD: tl.constexpr):
    """Return w_ij of spcl_fast/pair_weights.py, NaN where it has NaN."""
    if IS_HARD:
        return tl.where(loss_ij <= gamma, 1.0, 0.0)
    return tl.clamp(1.0 - loss_ij * (1.0 / gamma), 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def positive_forward_kernel(
    rows_ptr,  # (N, D) sorted, contiguous
    cols_ptr,  # (M, D) sorted, contiguous
    lse_ptr,  # (N,) sorted
    order_ptr,  # (N,) row at each sorted position
    first_ptr,  # (N,)
    last_ptr,  # (N,)
    loss_ptr,  # (N,) not sorted, like the next two
    weight_sum_ptr,
    num_pos_ptr,
    tau,  # number or pointer
    gamma,  # number or pointer
    N,
    D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IS_HARD: tl.constexpr,
    IS_SQUARE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """loss_i = sum_j w_ij l_ij / |P(i)| over the positives j of BLOCK_M rows."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = row < N
    d = tl.arange(0, BLOCK_K)
    first = tl.load(first_ptr + row, mask=is_row, other=0)
    last = tl.load(last_ptr + row, mask=is_row, other=0)
    lse_i = tl.load(lse_ptr + row, mask=is_row, other=0.0)
    inv_tau, gamma = 1.0 / scalar(tau), scalar(gamma)
    if D <= BLOCK_K:
        z_i = load_tile(rows_ptr, row, N, d, D, D, 1)

    loss_sum = tl.zeros((BLOCK_M,), tl.float32)
    weight_sum = tl.zeros((BLOCK_M,), tl.float32)
    begin, end = columns_to_visit(first, last)
    for col_0 in range(begin, end, BLOCK_N):
        col = col_0 + tl.arange(0, BLOCK_N)
        if D <= BLOCK_K:
            z_j = load_tile(cols_ptr, col, end, d, D, D, 1)
            dots = tl.dot(z_i, tl.trans(z_j), input_precision=PRECISION)
        else:
            dots = dots_by_blocks(
                rows_ptr, row, N, cols_ptr, col, end, D, D, 1, D, 1, BLOCK_K, PRECISION
            )
        loss_ij = lse_i[:, None] - dots * inv_tau
        w_ij = _pair_weight(loss_ij, gamma, IS_HARD)
        positive = is_positive(row, col, first, last, IS_SQUARE)
        weight_sum += tl.sum(tl.where(positive, w_ij, 0.0), 1)
        loss_sum += tl.sum(tl.where(positive, w_ij * loss_ij, 0.0), 1)

    num_pos = tl.where(last > first, last - first - (1 if IS_SQUARE else 0), 0)
    place = tl.load(order_ptr + row, mask=is_row, other=0)
    tl.store(loss_ptr + place, loss_sum / tl.maximum(num_pos, 1).to(tl.float32), mask=is_row)
    tl.store(weight_sum_ptr + place, weight_sum, mask=is_row)
    tl.store(num_pos_ptr + place, num_pos.to(tl.int64), mask=is_row)


@triton.jit
def positive_backward_kernel(
    rows_ptr,  # (N, D) sorted, contiguous
    cols_ptr,  # (M, D) sorted, contiguous
    row_lse_ptr,  # (N,) sorted; None if only columns have losses
    row_c_ptr,
    col_lse_ptr,  # (M,) sorted; None if only rows have losses
    col_c_ptr,
    order_ptr,  # (N,) row at each sorted position
    first_ptr,  # (N,)
    last_ptr,  # (N,)
    dz_ptr,  # (N, D) not sorted, contiguous
    tau,  # number or pointer
    gamma,  # number or pointer
    unscale_ptr,  # () undoes the scale of c, or None
    N,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IS_HARD: tl.constexpr,
    IS_SQUARE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dz_i = -sum_j h_ij z_j / tau with h_ij = c_i w_ij + c_j w_ji, for BLOCK_M x BLOCK_D of dz."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = row < N
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    first = tl.load(first_ptr + row, mask=is_row, other=0)
    last = tl.load(last_ptr + row, mask=is_row, other=0)
    tau, gamma = scalar(tau), scalar(gamma)
    inv_tau = 1.0 / tau
    if row_c_ptr is not None:
        lse_i = tl.load(row_lse_ptr + row, mask=is_row, other=0.0)
        c_i = tl.load(row_c_ptr + row, mask=is_row, other=0.0)
    if D <= BLOCK_K:
        z_i = load_tile(rows_ptr, row, N, d, D, D, 1)

    dz = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    begin, end = columns_to_visit(first, last)
    for col_0 in range(begin, end, BLOCK_N):
        col = col_0 + tl.arange(0, BLOCK_N)
        z_j = load_tile(cols_ptr, col, end, d, D, D, 1)
        if D <= BLOCK_K:
            dots = tl.dot(z_i, tl.trans(z_j), input_precision=PRECISION)
        else:
            dots = dots_by_blocks(
                rows_ptr, row, N, cols_ptr, col, end, D, D, 1, D, 1, BLOCK_K, PRECISION
            )
        sim = dots * inv_tau
        h_ij = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if row_c_ptr is not None:
            h_ij += c_i[:, None] * _pair_weight(lse_i[:, None] - sim, gamma, IS_HARD)
        if col_c_ptr is not None:
            lse_j = tl.load(col_lse_ptr + col, mask=col < end, other=0.0)
            c_j = tl.load(col_c_ptr + col, mask=col < end, other=0.0)
            h_ij += c_j[None, :] * _pair_weight(lse_j[None, :] - sim, gamma, IS_HARD)
        h_ij = tl.where(is_positive(row, col, first, last, IS_SQUARE), h_ij, 0.0)
        dz = tl.dot(h_ij.to(z_j.dtype), z_j, dz, input_precision=PRECISION)

    dz = -dz / tau
    if unscale_ptr is not None:
        dz *= tl.load(unscale_ptr)
    place = tl.load(order_ptr + row, mask=is_row, other=0)
    offset = place[:, None] * D + d[None, :]
    tl.store(dz_ptr + offset, dz, mask=is_row[:, None] & (d < D)[None, :])
