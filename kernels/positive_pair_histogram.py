"""`positive_pair_histogram` in Triton: visits the pairs of kernels/positive_pair_loss.py.

A program counts in registers and adds its counts once; with many bins it adds each pair instead.
Counts are integers, so the order of additions does not matter. Memory: O(N D + bins).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spcl_fast.kernels._config_tables import HISTOGRAM
from spcl_fast.kernels._configs import pick
from spcl_fast.kernels._features import dot_block, dot_precision, padded_features
from spcl_fast.kernels._positive_tiles import (
    as_scalar,
    columns_to_visit,
    is_positive,
    sorted_rows,
)
from spcl_fast.kernels._sorted_labels import SortedLabels
from spcl_fast.kernels._tiles import device_of, dots_by_blocks, load_tile, scalar
from spcl_fast.operands import Label, Pairs

# More bins do not fit into the registers of a program.
_MAX_LOCAL_BINS = 4096
# Fewer than the lanes of a warp would leave some idle.
_MIN_LOCAL_BINS = 32
_MAX_TABLE_D = 256


def positive_pair_histogram(
    pairs: Pairs,
    lse: Tensor,  # (N,) float32
    label: Label,
    *,
    upper: float | Tensor,
    bins: int,
) -> Tensor:
    """Return the counts (bins,) int64 of `spcl_fast.ops.positive_pair_histogram`."""
    z, refs, tau = pairs
    num_rows, dim = z.shape
    counts = torch.zeros(bins, dtype=torch.int64, device=z.device)
    if num_rows == 0:
        return counts
    precision = dot_precision(z.dtype)
    table_d = min(padded_features(dim), _MAX_TABLE_D)
    config = pick("positive_pair_histogram", HISTOGRAM, z.dtype, table_d, z.device)
    with device_of(z):
        order = SortedLabels(label.values, label.ref_values, label.window)
        rows, cols = sorted_rows(z, refs, order)
        _histogram_kernel[(triton.cdiv(num_rows, config.block_m),)](
            rows,
            cols,
            lse[order.row_order],
            *order.row_intervals(),
            counts,
            as_scalar(tau),
            as_scalar(upper),
            num_rows,
            bins,
            D=dim,
            BLOCK_K=dot_block(dim, precision),
            LOCAL_BINS=_local_bins(bins),
            IS_SQUARE=order.is_square,
            PRECISION=precision,
            **config.launch_options(),
        )
    return counts


def _local_bins(bins: int) -> int:
    """Return how many bins a program counts in registers, a power of two, or 0."""
    if bins > _MAX_LOCAL_BINS:
        return 0
    return int(max(triton.next_power_of_2(bins), _MIN_LOCAL_BINS))


@triton.jit
def _histogram_kernel(
    rows_ptr,  # (N, D) sorted, contiguous
    cols_ptr,  # (M, D) sorted, contiguous
    lse_ptr,  # (N,) sorted
    first_ptr,  # (N,)
    last_ptr,  # (N,)
    counts_ptr,  # (num_bins,)
    tau,  # number or pointer
    upper,  # number or pointer
    N,
    num_bins,
    D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LOCAL_BINS: tl.constexpr,  # 0 for none
    IS_SQUARE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Count l_ij of the positives j of BLOCK_M rows in equal bins of [0, upper]."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = row < N
    k = tl.arange(0, BLOCK_K)
    first = tl.load(first_ptr + row, mask=is_row, other=0)
    last = tl.load(last_ptr + row, mask=is_row, other=0)
    lse_i = tl.load(lse_ptr + row, mask=is_row, other=0.0)
    inv_tau, upper = 1.0 / scalar(tau), scalar(upper)
    if D <= BLOCK_K:
        z_i = load_tile(rows_ptr, row, N, k, D, D, 1)

    if LOCAL_BINS > 0:
        counts = tl.zeros((LOCAL_BINS,), tl.int32)
    begin, end = columns_to_visit(first, last)
    for col_0 in range(begin, end, BLOCK_N):
        col = col_0 + tl.arange(0, BLOCK_N)
        if D <= BLOCK_K:
            z_j = load_tile(cols_ptr, col, end, k, D, D, 1)
            dots = tl.dot(z_i, tl.trans(z_j), input_precision=PRECISION)
        else:
            dots = dots_by_blocks(
                rows_ptr, row, N, cols_ptr, col, end, D, D, 1, D, 1, BLOCK_K, PRECISION
            )
        loss_ij = lse_i[:, None] - dots * inv_tau
        # divided as in torch, so that a loss on the border of two bins goes into the same one
        place = tl.div_rn(loss_ij, tl.zeros_like(loss_ij) + upper) * num_bins
        place = tl.where(place > 0, place, 0.0)  # NaN goes to bin 0
        bin_ij = tl.minimum(place, num_bins - 1.0).to(tl.int32)
        positive = is_positive(row, col, first, last, IS_SQUARE)
        if LOCAL_BINS > 0:
            # one tensor: two could be reordered differently
            bin_ij = tl.where(positive, bin_ij, -1)
            bin_ij = tl.reshape(bin_ij, (BLOCK_M * BLOCK_N,), can_reorder=True)
            counts += tl.histogram(bin_ij, LOCAL_BINS, mask=bin_ij >= 0)
        else:
            one = tl.full((BLOCK_M, BLOCK_N), 1, tl.int64)
            tl.atomic_add(counts_ptr + bin_ij, one, mask=positive, sem="relaxed")

    if LOCAL_BINS > 0:
        place = tl.arange(0, LOCAL_BINS)
        is_used = (place < num_bins) & (counts > 0)
        tl.atomic_add(counts_ptr + place, counts.to(tl.int64), mask=is_used, sem="relaxed")
