"""`positive_pair_histogram` in Triton: visits the pairs of kernels/positive_pair_loss.py.

A program counts in registers and adds its counts once; with many bins it adds each pair instead.
Counts are integers, so the order of additions does not matter. Memory: O(N D + bins).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spcl_fast.kernels._bound import bound, cdiv
from spcl_fast.kernels._config_tables import HISTOGRAM
from spcl_fast.kernels._configs import pick
from spcl_fast.kernels._order import order_of
from spcl_fast.kernels._plane_products import load_planes
from spcl_fast.kernels._positive_kernels import columns_to_visit, is_positive, positive_dots
from spcl_fast.kernels._similarities import PlanePairs, as_scalar, device_of, inverse, scalar
from spcl_fast.operands import Label, Pairs

# More bins do not fit into the registers of a program.
_MAX_LOCAL_BINS = 4096
# Fewer than the lanes of a warp would leave some idle.
_MIN_LOCAL_BINS = 32


def positive_pair_histogram(
    pairs: Pairs,
    lse: Tensor,  # (N,) float32
    label: Label,
    *,
    upper: float | Tensor,
    bins: int,
) -> Tensor:
    """Return the counts (bins,) int64 of `spcl_fast.ops.positive_pair_histogram`."""
    counts = torch.zeros(bins, dtype=torch.int64, device=pairs.z.device)
    if pairs.z.numel() == 0 or (pairs.refs is not None and pairs.refs.numel() == 0):
        return counts
    with device_of(pairs.z):
        order = order_of(label.values, label.ref_values, label.window)
        planes = PlanePairs.of(*pairs)
        rows = planes.rows
        config = pick("positive_pair_histogram", HISTOGRAM, rows, counts.device)
        _histogram_kernel[(cdiv(planes.num_rows, config.block_m),)](
            *planes.planes(),
            lse.contiguous(),
            order.rows,
            order.cols,
            counts,
            as_scalar(pairs.tau),
            as_scalar(upper),
            planes.num_rows,
            bins,
            DP=rows.padded_dim,
            BLOCK_D=rows.step if rows.is_wide else rows.padded_dim,
            P=rows.num_planes,
            LOCAL_BINS=_local_bins(bins),
            EXCLUDES_SELF=planes.excludes_self,
            **config.launch_options(),
        )
    return counts


def _local_bins(bins: int) -> int:
    """Return how many bins a program counts in registers, a power of two, or 0."""
    if bins > _MAX_LOCAL_BINS:
        return 0
    return int(max(triton.next_power_of_2(bins), _MIN_LOCAL_BINS))


@bound
@triton.jit
def _histogram_kernel(
    z_ptr,  # (P, N, DP)
    cols_ptr,  # (P, M, DP)
    plane,  # stride
    col_plane,
    lse_ptr,  # (N,)
    side_ptr,  # (3, N), the rows' side of the order
    col_order_ptr,  # (M,) column at each sorted position
    counts_ptr,  # (num_bins,)
    tau,  # number or pointer
    upper,  # number or pointer
    N,
    num_bins,
    DP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    P: tl.constexpr,
    LOCAL_BINS: tl.constexpr,  # 0 for none
    EXCLUDES_SELF: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Count l_ij of the positives j of BLOCK_M rows in equal bins of [0, upper]."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = row < N
    i = tl.load(side_ptr + row, mask=is_row, other=0)
    d = tl.arange(0, BLOCK_D)
    first = tl.load(side_ptr + N + row, mask=is_row, other=0)
    last = tl.load(side_ptr + 2 * N + row, mask=is_row, other=0)
    lse_i = tl.load(lse_ptr + i, mask=is_row, other=0.0)
    inv_tau, upper = inverse(scalar(tau)), scalar(upper)
    z_i = load_planes(z_ptr, i, is_row, d, plane, DP, BLOCK_D, P)

    if LOCAL_BINS > 0:
        counts = tl.zeros((LOCAL_BINS,), tl.int32)
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
        # divided as in torch, so that a loss on the border of two bins goes into the same one
        place = tl.div_rn(loss_ij, tl.zeros_like(loss_ij) + upper) * num_bins
        place = tl.where(place > 0, place, 0.0)  # NaN goes to bin 0
        bin_ij = tl.minimum(place, num_bins - 1.0).to(tl.int32)
        positive = is_positive(i, j, col, first, last, EXCLUDES_SELF)
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
