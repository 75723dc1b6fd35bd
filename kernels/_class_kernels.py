"""Kernels of `positive_pair_loss` for positives of weight 1: sums over classes.

    sum_{j in P(i)} z_i . z_j = z_i . (A - z_i)              A = sum_{j: y_j = y_i} z_j
    dz_i = -(c_i (A - z_i) + (B - c_i z_i)) / tau            B = sum_{j: y_j = y_i} c_j z_j

(Without the subtractions for references; B = c_i A where a class has one c.) Rows and columns are
in the order of their labels, so that a class is an interval of each. Multiples of BLOCK rows cut
classes into pieces, and a program takes the pieces that begin at its few rows, whatever the sizes
of classes. Of the columns of a piece's class it adds the sums of whole blocks, which sum_block has
made before, and the columns at both ends. Sums are float32, of BLOCK terms beside each other, and
no atomic addition makes them differ.

Time: O(N D), and one addition of D numbers for BLOCK^2 positive pairs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spcl_fast.kernels._bound import bound
from spcl_fast.kernels._planes import product
from spcl_fast.kernels._positive_kernels import summed_parts
from spcl_fast.kernels._similarities import scalar


@triton.jit
def _rows(ptr, rows, is_row, d, plane, DP: tl.constexpr, P: tl.constexpr):
    """Return features d of rows, (BLOCK, BLOCK_D) float32."""
    offsets = rows.to(tl.int64)[:, None] * DP + d[None, :]
    mask = is_row[:, None] & (d < DP)[None, :]
    total = tl.load(ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    for p in tl.static_range(1, P):
        part = ptr + tl.full((), p, tl.int64) * plane
        total += tl.load(part + offsets, mask=mask, other=0.0).to(tl.float32)
    return total


@triton.jit
def _class_sum(
    ptr, order_ptr, c_ptr, sums_ptr, first, last, d, plane, DP: tl.constexpr, P: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, num_c=0,
):  # fmt: skip
    """Return the sum of rows at sorted positions [first, last), (BLOCK_D,), times c if given.

    Rows from num_c on have a c of 0. Sums of blocks, if given, stand for the rows of whole blocks.
    """
    total = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    first_block, num_blocks = tl.cdiv(first, BLOCK), 0
    if sums_ptr is not None:
        num_blocks = tl.maximum(last // BLOCK - first_block, 0)
        for begin in range(0, num_blocks, BLOCK):
            k = begin + tl.arange(0, BLOCK)
            offsets = (first_block + k).to(tl.int64)[:, None] * DP + d[None, :]
            mask = (k < num_blocks)[:, None] & (d < DP)[None, :]
            total += tl.load(sums_ptr + offsets, mask=mask, other=0.0)
    for begin in range(first, last - num_blocks * BLOCK, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        place += tl.where(place < first_block * BLOCK, 0, num_blocks * BLOCK)
        j = tl.load(order_ptr + place, mask=place < last, other=0)
        z_j = _rows(ptr, j, place < last, d, plane, DP, P)
        if c_ptr is not None:
            z_j *= tl.load(c_ptr + j, mask=(place < last) & (j < num_c), other=0.0)[:, None]
        total += z_j
    return tl.sum(total, 0)


@triton.jit
def sum_block(
    block, d, cols_ptr, col_plane, col_c_ptr, side_ptr, col_side_ptr, sums_ptr, N, M, num_col_c,
    DP: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the sum of BLOCK sorted columns, if all are positives of one row: others none reads."""
    begin = block * BLOCK
    end = begin + BLOCK
    # Of a class the last column has all rows as positives: in a bank, a first one may have none.
    row = tl.load(col_side_ptr + M + end - 1)
    if row < tl.load(col_side_ptr + 2 * M + end - 1):
        first, last = tl.load(side_ptr + N + row), tl.load(side_ptr + 2 * N + row)
        if (first <= begin) & (end <= last):
            sums = _class_sum(
                cols_ptr, col_side_ptr, col_c_ptr, None, begin, end, d, col_plane, DP, P, BLOCK,
                BLOCK_D, num_col_c,
            )  # fmt: skip
            tl.store(sums_ptr + block.to(tl.int64) * DP + d, sums, mask=d < DP)


@bound
@triton.jit
def class_sums_kernel(
    cols_ptr,  # (P, M, DP)
    col_plane,  # stride
    col_c_ptr,  # (M,); None for no weighted sums
    side_ptr,  # (3, N), the rows' side of the order
    col_side_ptr,  # (3, M)
    sums_ptr,  # (kinds, M // BLOCK, DP) float32, out: of columns; last, if there is c, weighted
    N,
    M,
    num_col_c,  # columns with losses: the first ones
    DP: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sum blocks of columns that lie in one class."""
    block, kind = tl.program_id(0), tl.program_id(2)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    sums_ptr += kind.to(tl.int64) * tl.num_programs(0) * DP
    if col_c_ptr is None or kind + 1 < tl.num_programs(2):
        sum_block(
            block, d, cols_ptr, col_plane, None, side_ptr, col_side_ptr, sums_ptr, N, M, 0,
            DP, P, BLOCK, BLOCK_D,
        )  # fmt: skip
    else:
        sum_block(
            block, d, cols_ptr, col_plane, col_c_ptr, side_ptr, col_side_ptr, sums_ptr, N, M,
            num_col_c, DP, P, BLOCK, BLOCK_D,
        )  # fmt: skip


@triton.jit
def _pieces(side_ptr, col_side_ptr, N, M, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Return the rows of a program, and of each its positives [first, last) and an end.

    That is the end of the piece that begins there, 0 if none does.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.load(side_ptr + N + row, mask=row < N, other=0)
    last = tl.load(side_ptr + 2 * N + row, mask=row < N, other=0)
    has_positives = last > first
    class_begin = tl.load(col_side_ptr + M + last - 1, mask=has_positives, other=0)
    class_end = tl.load(col_side_ptr + 2 * M + last - 1, mask=has_positives, other=0)
    begins = has_positives & ((row == class_begin) | (row % BLOCK == 0))
    end = tl.minimum(class_end, (row // BLOCK + 1) * BLOCK)
    return row, first, last, tl.where(begins, end, 0)


@triton.jit
def _at(values, k):
    return tl.sum(tl.where(tl.arange(0, values.shape[0]) == k, values, 0), 0)


@bound
@triton.jit
def class_forward_kernel(
    z_ptr,  # (P, N, DP)
    cols_ptr,  # (P, M, DP)
    plane,  # stride
    col_plane,
    lse_ptr,  # (N,)
    side_ptr,  # (3, N), the rows' side of the order
    col_side_ptr,  # (3, M)
    sums_ptr,  # (M // BLOCK, DP) of blocks; None for few columns
    loss_ptr,  # (N,) not sorted, like the next two
    weight_sum_ptr,
    num_pos_ptr,
    tau,  # number or pointer
    N,
    M,
    DP: tl.constexpr,
    P: tl.constexpr,
    EXCLUDES_SELF: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """loss_i = lse_i - z_i . (A - z_i) / (tau |P(i)|) of the pieces that begin at ROWS rows."""
    tau = scalar(tau)
    own, firsts, lasts, ends = _pieces(side_ptr, col_side_ptr, N, M, ROWS, BLOCK)
    is_alone = (own < N) & (lasts <= firsts)
    i_own = tl.load(side_ptr + own, mask=is_alone, other=0)
    tl.store(loss_ptr + i_own, tl.zeros((ROWS,), tl.float32), mask=is_alone)
    tl.store(weight_sum_ptr + i_own, tl.zeros((ROWS,), tl.float32), mask=is_alone)
    tl.store(num_pos_ptr + i_own, tl.zeros((ROWS,), tl.int64), mask=is_alone)
    for k in range(ROWS):
        end = _at(ends, k)
        if end > 0:
            first, last = _at(firsts, k), _at(lasts, k)
            num_pos = last - first - (1 if EXCLUDES_SELF else 0)
            row = tl.program_id(0) * ROWS + k + tl.arange(0, BLOCK)
            is_row = row < end
            i = tl.load(side_ptr + row, mask=is_row, other=0)
            dots = tl.zeros((BLOCK,), tl.float64)
            for begin_d in range(0, DP, BLOCK_D):
                d = begin_d + tl.arange(0, BLOCK_D)
                sums = _class_sum(
                    cols_ptr, col_side_ptr, None, sums_ptr, first, last, d, col_plane, DP, P,
                    BLOCK, BLOCK_D,
                )[None, :]  # fmt: skip
                z_i = _rows(z_ptr, i, is_row, d, plane, DP, P)
                others = sums - z_i if EXCLUDES_SELF else sums
                dots += tl.sum(product(z_i, others).to(tl.float64), 1)
            lse_i = tl.load(lse_ptr + i, mask=is_row, other=0.0)
            count = tl.zeros((BLOCK,), tl.int64) + num_pos
            # The mean is as large as lse_i where clusters are tight: its rounding would stay.
            loss = lse_i.to(tl.float64) - dots / (tau.to(tl.float64) * num_pos.to(tl.float64))
            tl.store(loss_ptr + i, loss.to(tl.float32), mask=is_row)
            tl.store(weight_sum_ptr + i, count.to(tl.float32), mask=is_row)
            tl.store(num_pos_ptr + i, count, mask=is_row)


@bound
@triton.jit
def class_backward_kernel(
    z_ptr,  # (P, N, DP)
    cols_ptr,  # (P, M, DP)
    plane,  # stride
    col_plane,
    c_ptr,  # (N,); None if only columns have losses
    col_c_ptr,  # (M,); None if only rows have losses, or c_ptr serves both
    side_ptr,  # (3, N), the rows' side of the order
    col_side_ptr,  # (3, M)
    sums_ptr,  # (M // BLOCK, DP) of blocks; None for few columns
    weighted_ptr,  # the same, times c
    parts_ptr,  # (num_parts, N, D) of what is added
    dz_ptr,  # (N, D) not sorted, contiguous; may be parts_ptr
    tau,  # number or pointer
    num_parts,
    N,
    M,
    num_col_c,  # columns with losses: the first ones
    D,
    DP: tl.constexpr,
    P: tl.constexpr,
    EXCLUDES_SELF: tl.constexpr,
    SIDES: tl.constexpr,  # 2 if the rows of a class have one c, as rows and as columns
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dz_i = parts - (c_i (A - z_i) + B - c_i z_i) / tau of BLOCK_D features of some pieces."""
    tau = scalar(tau)
    part = tl.full((), N, tl.int64) * D
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    own, firsts, lasts, ends = _pieces(side_ptr, col_side_ptr, N, M, ROWS, BLOCK)
    is_alone = (own < N) & (lasts <= firsts)
    i_own = tl.load(side_ptr + own, mask=is_alone, other=0)
    own_offsets = i_own.to(tl.int64)[:, None] * D + d[None, :]
    own_mask = is_alone[:, None] & (d < D)[None, :]
    own_total = summed_parts(parts_ptr, num_parts, part, own_offsets, own_mask)
    tl.store(dz_ptr + own_offsets, own_total.to(dz_ptr.dtype.element_ty), mask=own_mask)
    for k in range(ROWS):
        end = _at(ends, k)
        if end > 0:
            first, last = _at(firsts, k), _at(lasts, k)
            if c_ptr is not None:
                sums = _class_sum(
                    cols_ptr, col_side_ptr, None, sums_ptr, first, last, d, col_plane, DP, P,
                    BLOCK, BLOCK_D,
                )  # fmt: skip
            if col_c_ptr is not None:
                weighted = _class_sum(
                    cols_ptr, col_side_ptr, col_c_ptr, weighted_ptr, first, last, d, col_plane,
                    DP, P, BLOCK, BLOCK_D, num_col_c,
                )  # fmt: skip
            row = tl.program_id(0) * ROWS + k + tl.arange(0, BLOCK)
            is_row = row < end
            i = tl.load(side_ptr + row, mask=is_row, other=0)
            z_i = _rows(z_ptr, i, is_row, d, plane, DP, P)
            change = tl.zeros((BLOCK, BLOCK_D), tl.float32)
            if c_ptr is not None:
                c_i = tl.load(c_ptr + i, mask=is_row, other=0.0)[:, None]
                change += SIDES * c_i * (sums[None, :] - z_i if EXCLUDES_SELF else sums[None, :])
            if col_c_ptr is not None:
                change += weighted[None, :]
                if EXCLUDES_SELF:
                    c_i = tl.load(col_c_ptr + i, mask=is_row, other=0.0)[:, None]
                    change -= c_i * z_i
            offsets = i.to(tl.int64)[:, None] * D + d[None, :]
            mask = is_row[:, None] & (d < D)[None, :]
            total = summed_parts(parts_ptr, num_parts, part, offsets, mask) - change / tau
            tl.store(dz_ptr + offsets, total.to(dz_ptr.dtype.element_ty), mask=mask)
