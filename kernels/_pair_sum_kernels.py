"""Kernels of the forward of `pair_lse`, in kernels/pair_lse.py: sums of exp(sim) by tiles."""

from __future__ import annotations

import triton
import triton.language as tl

from spcl_fast.kernels._bound import bound
from spcl_fast.kernels._class_kernels import sum_block
from spcl_fast.kernels._plane_products import load_planes, products, products_by_steps
from spcl_fast.kernels._similarities import (
    FLOAT32_MAX,
    LN_2,
    LOG2_E,
    exponent_scale,
    finite,
    is_bounded,
    log_of_sum,
    rounded_sim,
    scalar,
)


@triton.jit
def _visited_dots(
    z_ptr, z_i, rows, N, plane, cols_ptr, cols, M, col_plane, holds_excluded,
    DP: tl.constexpr, BLOCK_D: tl.constexpr, P: tl.constexpr,
    EXCLUDES_SELF: tl.constexpr, IS_FINITE: tl.constexpr,
):  # fmt: skip
    """Return the products of a tile, (visited, owned), -inf for pairs that are excluded."""
    if BLOCK_D == DP:
        z_j = load_planes(
            cols_ptr, cols, cols < M, tl.arange(0, BLOCK_D), col_plane, DP, BLOCK_D, P
        )
        dots = products(z_j, z_i, P, IS_FINITE)
    else:
        dots = products_by_steps(
            cols_ptr, cols, cols < M, col_plane, z_ptr, rows, rows < N, plane,
            DP, BLOCK_D, P, IS_FINITE,
        )  # fmt: skip
    if holds_excluded:
        valid = (cols < M)[:, None] & (rows < N)[None, :]
        if EXCLUDES_SELF:
            valid &= cols[:, None] != rows[None, :]
        dots = tl.where(valid, dots, -float("inf"))
    return dots


@bound
@triton.jit
def pair_sums_kernel(
    z_ptr,  # (P, N, DP)
    cols_ptr,  # (P, M, DP)
    plane,  # stride
    col_plane,
    norms_ptr,  # of the rows
    col_norms_ptr,
    num_norms,
    num_col_norms,
    N,
    M,
    tau,  # number or pointer
    own_ptr,  # (programs of a block, own_stride) float32, out: parts of the rows
    visited_ptr,  # (blocks, visited_stride) float32, out: parts of the columns
    first_block,  # of BLOCK_M rows
    tiles_per_program,  # of BLOCK_N columns
    own_stride,
    visited_stride,
    BLOCK_M: tl.constexpr,  # rows owned by one program
    BLOCK_N: tl.constexpr,  # columns visited per step, a divisor of BLOCK_M
    BLOCK_D: tl.constexpr,
    DP: tl.constexpr,
    P: tl.constexpr,
    EXCLUDES_SELF: tl.constexpr,
    IS_TRIANGULAR: tl.constexpr,  # each pair is visited for both of its rows
    HAS_VISITED: tl.constexpr,
):
    """Sum exp(s_ij) over some tiles: for each owned row, and over the block for each visited row.

    If bounded, parts are sums of exp; otherwise they are log-sum-exps. A tile is (visited, owned):
    the sum over owned rows stays within a warp, the other is reduced across warps only once.
    """
    tau = scalar(tau)
    block = first_block + tl.program_id(0)
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    own_parts = own_ptr + tl.program_id(1).to(tl.int64) * own_stride + rows - first_block * BLOCK_M
    visited_parts = visited_ptr + tl.program_id(0).to(tl.int64) * visited_stride
    tiles = tl.cdiv(M, BLOCK_N)
    first = tl.program_id(1) * tiles_per_program
    last = tl.minimum(first + tiles_per_program, tiles)
    first_diagonal = block * (BLOCK_M // BLOCK_N)
    # Only tiles at an end or on the diagonal hold pairs that are excluded.
    first_off_diagonal = (block + 1) * (BLOCK_M // BLOCK_N)
    if IS_TRIANGULAR:
        first = tl.maximum(first, first_diagonal)
    ends_rows = (block + 1) * BLOCK_M > N
    d = tl.arange(0, BLOCK_D)
    z_i = load_planes(z_ptr, rows, rows < N, d, plane, DP, BLOCK_D, P)

    if is_bounded(norms_ptr, col_norms_ptr, num_norms, num_col_norms, N, M, tau):
        scale = exponent_scale(tau)
        sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for tile in range(first, last):
            cols = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            holds_excluded = (tile + 1 == tiles) | ends_rows
            if EXCLUDES_SELF:
                holds_excluded |= (tile >= first_diagonal) & (tile < first_off_diagonal)
            dots = _visited_dots(
                z_ptr, z_i, rows, N, plane, cols_ptr, cols, M, col_plane, holds_excluded,
                DP, BLOCK_D, P, EXCLUDES_SELF, IS_FINITE=True,
            )  # fmt: skip
            exps = tl.exp2(dots * scale)
            sums += exps
            if HAS_VISITED:
                is_part = cols < M
                if IS_TRIANGULAR:
                    is_part &= tile >= first_off_diagonal
                tl.store(visited_parts + cols, tl.sum(exps, 1), mask=is_part)
        own = tl.sum(sums, 0)
    else:
        shift = tl.full((BLOCK_M,), -FLOAT32_MAX, tl.float32)
        own_sum = tl.zeros((BLOCK_M,), tl.float32)
        for tile in range(first, last):
            cols = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            holds_excluded = (tile + 1 == tiles) | ends_rows
            if EXCLUDES_SELF:
                holds_excluded |= (tile >= first_diagonal) & (tile < first_off_diagonal)
            dots = _visited_dots(
                z_ptr, z_i, rows, N, plane, cols_ptr, cols, M, col_plane, holds_excluded,
                DP, BLOCK_D, P, EXCLUDES_SELF, IS_FINITE=False,
            )  # fmt: skip
            sim = rounded_sim(dots, tau)
            if HAS_VISITED:
                shift_j = finite(tl.max(sim, 1))
                sum_j = tl.sum(tl.exp2((sim - shift_j[:, None]) * LOG2_E), 1)
                is_part = cols < M
                if IS_TRIANGULAR:
                    is_part &= tile >= first_off_diagonal
                part = shift_j + tl.log2(sum_j) * LN_2
                tl.store(visited_parts + cols, part, mask=is_part)
            larger = tl.maximum(shift, finite(tl.max(sim, 0)))
            own_sum *= tl.exp2((shift - larger) * LOG2_E)
            own_sum += tl.sum(tl.exp2((sim - larger[None, :]) * LOG2_E), 0)
            shift = larger
        own = shift + tl.log2(own_sum) * LN_2
    tl.store(own_parts, own, mask=rows < N)


@triton.jit
def _merged(
    total, parts_ptr, num_parts, num_valid, columns, is_column, stride, bounded, neutral,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return a total and its parts added, in the order of their lines."""
    for first in range(0, num_parts, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        offsets = k.to(tl.int64)[:, None] * stride + columns[None, :]
        mask = (k[:, None] < num_valid[None, :]) & is_column[None, :]
        parts = tl.load(parts_ptr + offsets, mask=mask, other=neutral)
        if bounded:
            total += tl.sum(parts, 0)
        else:
            shift = finite(tl.maximum(total, tl.max(parts, 0)))
            exps_sum = tl.sum(tl.exp2((parts - shift[None, :]) * LOG2_E), 0)
            exps_sum += tl.exp2((total - shift) * LOG2_E)
            total = shift + tl.log2(exps_sum) * LN_2
    return total


@bound
@triton.jit(do_not_specialize=["merges"])
def merge_parts_kernel(
    norms_ptr,
    col_norms_ptr,
    num_norms,
    num_col_norms,
    N,
    M,
    tau,  # number or pointer
    own_ptr,  # (num_own, own_stride) float32
    visited_ptr,  # (num_visited, visited_stride) float32
    lse_ptr,  # (N,) float32, out
    col_lse_ptr,  # (M,) float32, in and out; lse_ptr if triangular
    num_own,
    num_visited,
    first_row,  # of the panel
    last_row,
    own_stride,
    visited_stride,
    is_first,  # panel: columns hold nothing yet
    is_last,
    merges,  # program_id(0) that merge; those that follow sum blocks of columns
    cols_ptr,  # (P, M, DP), or None
    col_plane,  # stride
    side_ptr,  # (3, N), the rows' side of the order, or None
    col_side_ptr,  # (3, M), or None
    sums_ptr,  # (M // CLASS_BLOCK, DP) float32, out, or None
    BLOCK: tl.constexpr,  # rows or columns of one program
    BLOCK_M: tl.constexpr,  # rows owned by one program of pair_sums_kernel
    BLOCK_K: tl.constexpr,  # parts per step
    IS_TRIANGULAR: tl.constexpr,
    DP: tl.constexpr,
    P: tl.constexpr,
    CLASS_BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Merge the parts of a panel of rows, or sum a block of columns that lie in one class."""
    program = tl.program_id(0)
    if program < merges:
        _merge(
            program, norms_ptr, col_norms_ptr, num_norms, num_col_norms, N, M, tau, own_ptr,
            visited_ptr, lse_ptr, col_lse_ptr, num_own, num_visited, first_row, last_row,
            own_stride, visited_stride, is_first, is_last, BLOCK, BLOCK_M, BLOCK_K, IS_TRIANGULAR,
        )  # fmt: skip
    elif sums_ptr is not None:
        steps: tl.constexpr = (DP + BLOCK_D - 1) // BLOCK_D
        d = (program - merges) % steps * BLOCK_D + tl.arange(0, BLOCK_D)
        sum_block(
            (program - merges) // steps, d, cols_ptr, col_plane, None, side_ptr, col_side_ptr,
            sums_ptr, N, M, 0, DP, P, CLASS_BLOCK, BLOCK_D,
        )  # fmt: skip


@triton.jit
def _merge(
    program, norms_ptr, col_norms_ptr, num_norms, num_col_norms, N, M, tau, own_ptr, visited_ptr,
    lse_ptr, col_lse_ptr, num_own, num_visited, first_row, last_row, own_stride, visited_stride,
    is_first, is_last, BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    IS_TRIANGULAR: tl.constexpr,
):  # fmt: skip
    """Merge the parts of a panel of rows; between panels col_lse is itself a part of each column.

    Triangular: programs count rows from first_row, all of which have parts from the blocks
    before their own, and those of the panel their own parts. Otherwise program_id(1) is 0 for the
    rows of the panel and 1 for all columns.
    """
    bounded = is_bounded(
        norms_ptr, col_norms_ptr, num_norms, num_col_norms, N, M, scalar(tau)
    )  # fmt: skip
    neutral = tl.where(bounded, 0.0, -float("inf"))
    index = program * BLOCK + tl.arange(0, BLOCK)
    total = tl.full((BLOCK,), 0.0, tl.float32) + neutral
    zeros = tl.zeros((BLOCK,), tl.int32)
    is_side_of_columns = tl.program_id(1) == 1
    if IS_TRIANGULAR or is_side_of_columns:
        start = first_row if IS_TRIANGULAR else 0
        cols = start + index
        is_col = cols < M
        if not is_first:
            total = tl.load(col_lse_ptr + cols, mask=is_col, other=0.0)
        num_valid = zeros + num_visited
        if IS_TRIANGULAR:
            num_valid = tl.minimum(num_valid, (cols - first_row) // BLOCK_M)
        total = _merged(
            total, visited_ptr, num_visited, num_valid, cols, is_col, visited_stride, bounded,
            neutral, BLOCK_K,
        )  # fmt: skip
        is_done = (is_last != 0) & is_col
        if IS_TRIANGULAR:
            is_own = cols < last_row
            total = _merged(
                total, own_ptr, num_own, zeros + num_own, index, is_own, own_stride, bounded,
                neutral, BLOCK_K,
            )  # fmt: skip
            is_done = is_own
        if bounded:
            total = tl.where(is_done, log_of_sum(total), total)
        tl.store(col_lse_ptr + cols, total, mask=is_col)
    else:
        is_own = first_row + index < last_row
        total = _merged(
            total, own_ptr, num_own, zeros + num_own, index, is_own, own_stride, bounded,
            neutral, BLOCK_K,
        )  # fmt: skip
        if bounded:
            total = log_of_sum(total)
        tl.store(lse_ptr + first_row + index, total, mask=is_own)
