"""Kernels of `positive_pair_loss` for positives of weight 1: sums over classes, in linear time.

    sum_{j in P(i)} z_i . z_j = z_i . (A - z_i)              A = sum_{j: y_j = y_i} z_j
    dz_i = -(c_i (A - z_i) + (B - c_i z_i)) / tau            B = sum_{j: y_j = y_i} c_j z_j

(Without the subtractions for references.) Rows and columns are in the order of their labels, so
that a class is an interval of each. A program takes the classes that begin at its few rows. Sums
are float32, of BLOCK terms beside each other, and no atomic addition makes them differ.
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
        total += tl.load(ptr + p * plane + offsets, mask=mask, other=0.0).to(tl.float32)
    return total


@triton.jit
def _class_sum(
    ptr, order_ptr, c_ptr, first, last, d, plane, DP: tl.constexpr, P: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, num_c=0,
):  # fmt: skip
    """Return the sum of rows at sorted positions [first, last), (BLOCK_D,), times c if given.

    Rows from num_c on have a c of 0.
    """
    total = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for begin in range(first, last, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        j = tl.load(order_ptr + place, mask=place < last, other=0)
        z_j = _rows(ptr, j, place < last, d, plane, DP, P)
        if c_ptr is not None:
            z_j *= tl.load(c_ptr + j, mask=(place < last) & (j < num_c), other=0.0)[:, None]
        total += z_j
    return tl.sum(total, 0)


@triton.jit
def _end_of_class(side_ptr, begin, first, last, N, BLOCK: tl.constexpr):
    """Return the position behind the rows from `begin` on with the positives [first, last)."""
    end = begin
    is_open = True
    while is_open:
        place = end + tl.arange(0, BLOCK)
        other = tl.load(side_ptr + N + place, mask=place < N, other=-1)
        other_last = tl.load(side_ptr + 2 * N + place, mask=place < N, other=-1)
        same = tl.sum(((other == first) & (other_last == last)).to(tl.int32), 0)
        end += same
        is_open = same == BLOCK
    return end


@triton.jit
def _class_at(side_ptr, row, N):
    """Return first and last of the positives of the class that begins at a row, both 0 for none."""
    is_row = row < N
    first = tl.load(side_ptr + N + row, mask=is_row, other=0)
    last = tl.load(side_ptr + 2 * N + row, mask=is_row, other=0)
    before = tl.load(side_ptr + N + row - 1, mask=is_row & (row > 0), other=-1)
    before_last = tl.load(side_ptr + 2 * N + row - 1, mask=is_row & (row > 0), other=-1)
    begins = (first != before) | (last != before_last)
    return tl.where(begins, first, 0), tl.where(begins, last, 0)


@triton.jit
def _rows_alone(side_ptr, N, ROWS: tl.constexpr):
    """Return the rows of a program, and which of them have no positives."""
    own = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_own = own < N
    first = tl.load(side_ptr + N + own, mask=is_own, other=0)
    last = tl.load(side_ptr + 2 * N + own, mask=is_own, other=0)
    return tl.load(side_ptr + own, mask=is_own, other=0), is_own & (last <= first)


@bound
@triton.jit
def class_forward_kernel(
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
    N,
    DP: tl.constexpr,
    P: tl.constexpr,
    EXCLUDES_SELF: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """loss_i = lse_i - z_i . (A - z_i) / (tau |P(i)|) of the classes that begin at ROWS rows."""
    inv_tau = 1.0 / scalar(tau)
    i_own, is_alone = _rows_alone(side_ptr, N, ROWS)
    tl.store(loss_ptr + i_own, tl.zeros((ROWS,), tl.float32), mask=is_alone)
    tl.store(weight_sum_ptr + i_own, tl.zeros((ROWS,), tl.float32), mask=is_alone)
    tl.store(num_pos_ptr + i_own, tl.zeros((ROWS,), tl.int64), mask=is_alone)
    for k in range(ROWS):
        row = tl.program_id(0) * ROWS + k
        first, last = _class_at(side_ptr, row, N)
        if last > first:
            num_pos = last - first - (1 if EXCLUDES_SELF else 0)
            end = _end_of_class(side_ptr, row, first, last, N, BLOCK)
            for begin_d in range(0, DP, BLOCK_D):
                d = begin_d + tl.arange(0, BLOCK_D)
                sums = _class_sum(
                    cols_ptr, col_order_ptr, None, first, last, d, col_plane, DP, P, BLOCK, BLOCK_D
                )[None, :]
                for begin in range(row, end, BLOCK):
                    place = begin + tl.arange(0, BLOCK)
                    is_row = place < end
                    i = tl.load(side_ptr + place, mask=is_row, other=0)
                    z_i = _rows(z_ptr, i, is_row, d, plane, DP, P)
                    others = sums - z_i if EXCLUDES_SELF else sums
                    dots = tl.sum(product(z_i, others), 1)
                    if begin_d > 0:
                        dots += tl.load(loss_ptr + i, mask=is_row, other=0.0)
                    if begin_d + BLOCK_D >= DP:
                        lse_i = tl.load(lse_ptr + i, mask=is_row, other=0.0)
                        dots = lse_i - dots * inv_tau / num_pos.to(tl.float32)
                        count = tl.zeros((BLOCK,), tl.int64) + num_pos
                        tl.store(weight_sum_ptr + i, count.to(tl.float32), mask=is_row)
                        tl.store(num_pos_ptr + i, count, mask=is_row)
                    tl.store(loss_ptr + i, dots, mask=is_row)
                tl.debug_barrier()  # losses are read back


@bound
@triton.jit
def class_backward_kernel(
    z_ptr,  # (P, N, DP)
    cols_ptr,  # (P, M, DP)
    plane,  # stride
    col_plane,
    c_ptr,  # (N,); None if only columns have losses
    col_c_ptr,  # (M,); None if only rows have losses
    side_ptr,  # (3, N), the rows' side of the order
    col_order_ptr,  # (M,) column at each sorted position
    parts_ptr,  # (num_parts, N, D) of what is added
    dz_ptr,  # (N, D) not sorted, contiguous; may be parts_ptr
    tau,  # number or pointer
    num_parts,
    N,
    num_col_c,  # columns with losses: the first ones
    D,
    DP: tl.constexpr,
    P: tl.constexpr,
    EXCLUDES_SELF: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dz_i = parts - (c_i (A - z_i) + B - c_i z_i) / tau of BLOCK_D features of some classes."""
    tau = scalar(tau)
    part = tl.full((), N, tl.int64) * D
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    i_own, is_alone = _rows_alone(side_ptr, N, ROWS)
    own_offsets = i_own.to(tl.int64)[:, None] * D + d[None, :]
    own_mask = is_alone[:, None] & (d < D)[None, :]
    own_total = summed_parts(parts_ptr, num_parts, part, own_offsets, own_mask)
    tl.store(dz_ptr + own_offsets, own_total.to(dz_ptr.dtype.element_ty), mask=own_mask)
    for k in range(ROWS):
        row = tl.program_id(0) * ROWS + k
        first, last = _class_at(side_ptr, row, N)
        if last > first:
            end = _end_of_class(side_ptr, row, first, last, N, BLOCK)
            if c_ptr is not None:
                sums = _class_sum(
                    cols_ptr, col_order_ptr, None, first, last, d, col_plane, DP, P, BLOCK, BLOCK_D
                )
            if col_c_ptr is not None:
                weighted = _class_sum(
                    cols_ptr, col_order_ptr, col_c_ptr, first, last, d, col_plane, DP, P, BLOCK,
                    BLOCK_D, num_col_c,
                )  # fmt: skip
            for begin in range(row, end, BLOCK):
                place = begin + tl.arange(0, BLOCK)
                is_row = place < end
                i = tl.load(side_ptr + place, mask=is_row, other=0)
                z_i = _rows(z_ptr, i, is_row, d, plane, DP, P)
                change = tl.zeros((BLOCK, BLOCK_D), tl.float32)
                if c_ptr is not None:
                    c_i = tl.load(c_ptr + i, mask=is_row, other=0.0)[:, None]
                    change += c_i * (sums[None, :] - z_i if EXCLUDES_SELF else sums[None, :])
                if col_c_ptr is not None:
                    change += weighted[None, :]
                    if EXCLUDES_SELF:
                        c_i = tl.load(col_c_ptr + i, mask=is_row, other=0.0)[:, None]
                        change -= c_i * z_i
                offsets = i.to(tl.int64)[:, None] * D + d[None, :]
                mask = is_row[:, None] & (d < D)[None, :]
                total = summed_parts(parts_ptr, num_parts, part, offsets, mask) - change / tau
                tl.store(dz_ptr + offsets, total.to(dz_ptr.dtype.element_ty), mask=mask)
