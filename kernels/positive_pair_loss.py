"""`positive_pair_loss` in Triton; the mathematics is in spcl_fast/ops/positive_pair_loss.py.

Rows are gathered once in the order of their labels. A program owns rows and walks the columns
between the first and the last positive of any of them, so sums and gradients stay in registers:
nothing is added across programs, and every run gives the same bits. With gamma = inf and no window
class sums replace the pairs (spcl_fast/chunked/_class_sums.py); on a GPU these add atomically
unless torch.use_deterministic_algorithms is on.

Memory: O(N D). Multiply-adds: (share of visited pairs) x N^2 D forward, 2 x that backward for
D <= 256; beyond, the backward computes the similarities anew for every 256 features.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from spcl_fast.chunked._class_sums import Classes, class_sum_gradients, class_sum_loss
from spcl_fast.kernels._configs import Config, Key, pick
from spcl_fast.kernels._positive_tiles import (
    as_scalar,
    both_half_types,
    columns_to_visit,
    dot_block,
    gradient_block,
    is_positive,
    sorted_rows,
)
from spcl_fast.kernels._sorted_labels import Intervals, SortedLabels
from spcl_fast.kernels._tiles import (
    device_of,
    dot_precision,
    dots_by_blocks,
    launch_options,
    load_tile,
    scalar,
)
from spcl_fast.pair_weights import Mode

# Spills, repeated products and shared memory are those of Triton 3.8 for sm_80 and sm_90. All fit
# into the 99 KiB of shared memory that sm_86, sm_89 and sm_120 have. 64 rows: more would visit more
# columns that are positive for none of their labels.
FORWARD: dict[Key, Config] = {
    **both_half_types(64, Config(64, 64, 4, 3)),  # room for three stages
    **both_half_types(128, Config(64, 64, 4, 2)),  # a third stage would cost a program
    **both_half_types(256, Config(64, 32, 4, 2)),  # 64 x 64 spills in what Triton 3.6 compiles
    **both_half_types(256, Config(64, 64, 4, 2), arch=90),  # 98 KiB
    ("fp32 tf32", 64, 80): Config(64, 64, 4, 2),
    ("fp32 tf32", 128, 80): Config(64, 32, 4, 2),  # 64 x 64 has 98 KiB and one program less
    ("fp32 tf32", 256, 80): Config(64, 16, 4, 2),  # 64 x 32 has 131 KiB on sm_90
    ("fp32 tf32x3", 64, 80): Config(64, 32, 4, 2),
    ("fp32 tf32x3", 128, 80): Config(64, 16, 4, 2),  # 64 x 32 spills on sm_80
    ("fp32 tf32x3", 128, 90): Config(64, 32, 4, 2),
    ("fp32 ieee", 128, 80): Config(64, 64, 8, 2),
    ("fp32 ieee", 128, 90): Config(64, 32, 8, 2),  # as bf16 of 256
}
BACKWARD: dict[Key, Config] = {
    **both_half_types(128, Config(64, 32, 4, 3)),  # 64 x 64 spills on sm_80
    **both_half_types(128, Config(64, 64, 4, 2), arch=90),
    **both_half_types(256, Config(64, 32, 4, 1)),  # two stages spill
    **both_half_types(256, Config(128, 32, 8, 2), arch=90),  # 64 x 32 reads twice as often
    # 32 rows on sm_90: of 64 the second product of a tile wants z_j transposed, which is written to
    # shared memory with 16-way bank conflicts.
    ("fp32 tf32", 64, 80): Config(64, 32, 4, 2),
    ("fp32 tf32", 64, 90): Config(32, 64, 4, 2),
    ("fp32 tf32", 128, 80): Config(64, 32, 4, 2),
    ("fp32 tf32", 128, 90): Config(32, 64, 4, 2),
    ("fp32 tf32", 256, 80): Config(32, 32, 4, 2),  # the largest that neither spills nor repeats
    ("fp32 tf32x3", 64, 80): Config(64, 16, 4, 2),  # 64 x 32 spills
    ("fp32 tf32x3", 64, 90): Config(32, 32, 4, 1),  # two stages spill
    ("fp32 tf32x3", 128, 80): Config(64, 16, 4, 2),  # 64 x 32 spills
    ("fp32 tf32x3", 128, 90): Config(64, 32, 4, 1),  # 32 x 64 and two stages spill
    ("fp32 ieee", 64, 80): Config(32, 32, 4, 2),  # 64 x 32 spills
    ("fp32 ieee", 128, 80): Config(64, 32, 8, 2),  # 64 x 64 spills
    ("fp32 ieee", 128, 90): Config(32, 32, 4, 2),  # 64 x 32 spills
}


def positive_pair_loss_fwd(
    z: Tensor,  # (N, D) float32, bfloat16 or float16
    lse: Tensor,  # (N,) float32
    labels: Tensor,  # (N,)
    refs: Tensor | None,  # (M, D)
    ref_labels: Tensor | None,  # (M,)
    tau: float | Tensor,
    gamma: float | Tensor,
    mode: Mode,
    window: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss and weight_sum, float32, and num_pos, int64, (N,) each."""
    if _has_unit_weights(gamma, window):
        others = None if refs is None else refs.float()
        return class_sum_loss(z.float(), lse, others, Classes(labels, ref_labels), tau)
    num_rows, dim = z.shape
    loss, weight_sum = lse.new_empty(num_rows), lse.new_empty(num_rows)
    num_pos = lse.new_empty(num_rows, dtype=torch.int64)
    if num_rows == 0:
        return loss, weight_sum, num_pos
    precision = dot_precision(z.dtype)
    block_d = gradient_block(dim, precision)
    config = pick("positive_pair_loss_fwd", FORWARD, z.dtype, block_d, z.device)
    with device_of(z):
        order = SortedLabels(labels, ref_labels, window)
        rows, cols = sorted_rows(z, refs, order)
        _forward_kernel[(triton.cdiv(num_rows, config.block_m),)](
            rows,
            cols,
            lse[order.row_order],
            order.row_order,
            *order.row_intervals(),
            loss,
            weight_sum,
            num_pos,
            as_scalar(tau),
            as_scalar(gamma),
            num_rows,
            D=dim,
            BLOCK_K=dot_block(dim, precision),
            IS_HARD=mode == "hard",
            IS_SQUARE=order.is_square,
            PRECISION=precision,
            **launch_options(config),
        )
    return loss, weight_sum, num_pos


def positive_pair_loss_bwd(
    c: Tensor,  # (N,) float32, dloss_i / |P(i)|
    z: Tensor,  # (N, D)
    lse: Tensor,  # (N,)
    labels: Tensor,  # (N,)
    refs: Tensor | None,  # (M, D)
    ref_labels: Tensor | None,  # (M,)
    tau: float | Tensor,
    gamma: float | Tensor,
    mode: Mode,
    window: float | None,
    *,
    needs_z: bool,
    needs_refs: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return dz (N, D) and drefs (M, D) with lse held fixed, as `z`, None where not needed."""
    if _has_unit_weights(gamma, window):
        others = None if refs is None else refs.float()
        gradients = class_sum_gradients(
            c,
            z.float(),
            others,
            Classes(labels, ref_labels),
            tau,
            needs_z=needs_z,
            needs_refs=needs_refs,
        )
        dz, drefs = (None if grad is None else grad.to(z.dtype) for grad in gradients)
        return dz, drefs
    unscale = None
    if z.dtype == torch.float16:
        unscale, c = _fit_float16(c, z, refs, lse, tau, gamma, mode)
    with device_of(z):
        order = SortedLabels(labels, ref_labels, window)
        rows, cols = sorted_rows(z, refs, order)
        terms = lse[order.row_order], c[order.row_order]
        how = (tau, gamma, unscale, mode)
        if refs is None:
            dz = _gradient(rows, rows, terms, terms, order.row_order, order.row_intervals(), *how)
            return (dz if needs_z else None), None
        dz = drefs = None
        if needs_z:
            dz = _gradient(rows, cols, terms, None, order.row_order, order.row_intervals(), *how)
        if needs_refs:
            drefs = _gradient(cols, rows, None, terms, order.col_order, order.col_intervals(), *how)
    return dz, drefs


def _has_unit_weights(gamma: float | Tensor, window: float | None) -> bool:
    return isinstance(gamma, float) and gamma == math.inf and window is None


def _gradient(
    rows: Tensor,  # (N, D) sorted
    cols: Tensor,  # (M, D) sorted, or `rows` itself
    row_terms: tuple[Tensor, Tensor] | None,  # lse and c of the rows
    col_terms: tuple[Tensor, Tensor] | None,  # lse and c of the columns
    row_order: Tensor,
    intervals: Intervals,
    tau: float | Tensor,
    gamma: float | Tensor,
    unscale: Tensor | None,
    mode: Mode,
) -> Tensor:
    """Return the gradient of the rows (N, D), in the order that they had before the sort."""
    num_rows, dim = rows.shape
    gradient = torch.empty_like(rows)
    if gradient.numel() == 0:
        return gradient
    precision = dot_precision(rows.dtype)
    block_d = gradient_block(dim, precision)
    config = pick("positive_pair_loss_bwd", BACKWARD, rows.dtype, block_d, rows.device)
    _backward_kernel[(triton.cdiv(num_rows, config.block_m), triton.cdiv(dim, block_d))](
        rows,
        cols,
        *(row_terms or (None, None)),
        *(col_terms or (None, None)),
        row_order,
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
        IS_SQUARE=cols is rows,
        PRECISION=precision,
        **launch_options(config),
    )
    return gradient


def _fit_float16(
    c: Tensor,
    z: Tensor,
    refs: Tensor | None,
    lse: Tensor,
    tau: float | Tensor,
    gamma: float | Tensor,
    mode: Mode,
) -> tuple[Tensor, Tensor]:
    """Return 1 / scale and scale c: |scale (c_i w_ij + c_j w_ji)| <= 2^14 where it is finite.

    A weight exceeds 1 where lse_i < s_ij, by no more than what the longest rows allow.
    """
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
    """Return the largest finite |x|: rows that are not finite must not change the others."""
    if x.numel() == 0:
        return x.new_zeros(())
    return torch.where(x.isfinite(), x.abs(), 0).amax()


@triton.jit
def _pair_weight(loss_ij, gamma, IS_HARD: tl.constexpr):
    """Return w_ij as spcl_fast/pair_weights.py, NaN where that has NaN."""
    if IS_HARD:
        return tl.where(loss_ij <= gamma, 1.0, 0.0)
    return tl.maximum(1.0 - loss_ij * (1.0 / gamma), 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _forward_kernel(
    rows_ptr,  # (N, D) sorted, contiguous
    cols_ptr,  # (M, D) sorted, contiguous
    lse_ptr,  # (N,) sorted
    order_ptr,  # (N,) row at every place
    first_ptr,  # (N,)
    last_ptr,  # (N,)
    loss_ptr,  # (N,) not sorted, as the two below
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
def _backward_kernel(
    rows_ptr,  # (N, D) sorted, contiguous
    cols_ptr,  # (M, D) sorted, contiguous
    row_lse_ptr,  # (N,) sorted; None if only the columns have losses
    row_c_ptr,
    col_lse_ptr,  # (M,) sorted; None if only the rows have losses
    col_c_ptr,
    order_ptr,  # (N,) row at every place
    first_ptr,  # (N,)
    last_ptr,  # (N,)
    dz_ptr,  # (N, D) not sorted, contiguous
    tau,  # number or pointer
    gamma,  # number or pointer
    unscale_ptr,  # () what takes the scale out of c, or None
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
