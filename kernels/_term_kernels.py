"""Kernels between rows and scalars; the mathematics is in spcl_fast/ops/contrastive_terms.py."""

from __future__ import annotations

import triton
import triton.language as tl

from spcl_fast.kernels._bound import bound
from spcl_fast.kernels._planes import product
from spcl_fast.kernels._row_weights import gradient_scale, scaled_weight
from spcl_fast.kernels._similarities import is_bounded, scalar


@triton.jit
def collapse_of(sums_ptr, blocks, N, DP: tl.constexpr):
    """Return (|sum z|^2 - sum |z|^2) / ((N - 1) sum |z|^2) from the sums of planes_kernel."""
    BLOCK: tl.constexpr = 64
    BLOCK_D: tl.constexpr = 64
    own = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, blocks, BLOCK):
        block = first + tl.arange(0, BLOCK)
        own += tl.load(sums_ptr + block * (DP + 1) + DP, mask=block < blocks, other=0.0)
    own = tl.sum(own, 0)
    pairs = tl.zeros((), tl.float32) - own
    for begin_d in range(0, DP, BLOCK_D):
        d = begin_d + tl.arange(0, BLOCK_D)
        total = tl.zeros((BLOCK, BLOCK_D), tl.float32)
        for first in range(0, blocks, BLOCK):
            block = first + tl.arange(0, BLOCK)
            offsets = block[:, None] * (DP + 1) + d[None, :]
            total += tl.load(sums_ptr + offsets, mask=(block < blocks)[:, None], other=0.0)
        total = tl.sum(total, 0)
        pairs += tl.sum(product(total, total), 0)
    scale = own * (N - 1)
    return tl.where(scale == 0, 0.0, pairs / scale)


@triton.jit
def _of_all_labels(weight_sum_ptr, num_pos_ptr, N, num_labels, BLOCK: tl.constexpr):
    """Return the mean weight and the number of anchors of all labels together."""
    weights, counts = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.int64)
    anchors = tl.zeros((BLOCK,), tl.int64)
    for first in range(0, N, BLOCK):
        row = first + tl.arange(0, BLOCK)
        most = tl.zeros((BLOCK,), tl.int64)
        for k in range(num_labels):
            place = row + tl.full((), k, tl.int64) * N
            weights += tl.load(weight_sum_ptr + place, mask=row < N, other=0.0)
            num_pos = tl.load(num_pos_ptr + place, mask=row < N, other=0)
            counts += num_pos
            most = tl.maximum(most, num_pos)
        anchors += (most > 0).to(tl.int64)
    count = tl.maximum(tl.sum(counts, 0), 1).to(tl.float32)
    return tl.sum(weights, 0) / count, tl.sum(anchors, 0)


@bound
@triton.jit
def reduce_label_kernel(
    loss_ptr,  # (K, N) float32
    weight_sum_ptr,  # (K, N) float32
    num_pos_ptr,  # (K, N) int64
    sums_ptr,  # (blocks, DP + 1) float32, from planes_kernel
    total_ptr,  # () float32, in and out: sum of lambda L
    losses_ptr,  # (K,) float32, out
    info_ptr,  # (K + 1, 3) float32, out: objective, mean weight, collapse; of all labels last
    anchors_ptr,  # (K + 1,) int64, out
    slopes_ptr,  # (K,) float32, out: derivative of L_k in the loss of an anchor
    factors_ptr,  # (K,) float32, out: lambda
    gamma,  # number or pointer
    factor,  # lambda
    blocks,
    N,
    num_labels,
    k,
    DP: tl.constexpr,
    IS_HARD: tl.constexpr,
    IS_PACED: tl.constexpr,
    CORRECTS: tl.constexpr,  # divide the loss by the mean weight where that is above 0
    BLOCK: tl.constexpr,
):
    """Reduce the rows of label k, in one program; the last label finishes what all share."""
    start = tl.full((), k, tl.int64) * N
    losses, weights = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    shares = tl.zeros((BLOCK,), tl.float32)
    counts, anchors = tl.zeros((BLOCK,), tl.int64), tl.zeros((BLOCK,), tl.int64)
    for first in range(0, N, BLOCK):
        row = first + tl.arange(0, BLOCK)
        num_pos = tl.load(num_pos_ptr + start + row, mask=row < N, other=0)
        weight_sum = tl.load(weight_sum_ptr + start + row, mask=row < N, other=0.0)
        losses += tl.load(loss_ptr + start + row, mask=row < N, other=0.0)
        weights += weight_sum
        shares += weight_sum / tl.maximum(num_pos, 1).to(tl.float32)
        counts += num_pos
        anchors += (num_pos > 0).to(tl.int64)
    num_anchors = tl.sum(anchors, 0)
    slope = 1.0 / tl.maximum(num_anchors, 1).to(tl.float32)
    loss = tl.sum(losses, 0) / tl.maximum(num_anchors, 1).to(tl.float32)
    mean_weight = tl.sum(weights, 0) / tl.maximum(tl.sum(counts, 0), 1).to(tl.float32)
    objective = loss
    if IS_PACED:
        gamma = scalar(gamma)
        share = tl.sum(shares, 0) / tl.maximum(num_anchors, 1).to(tl.float32)
        objective = loss - gamma * share
        if not IS_HARD:
            objective *= 0.5
        objective = tl.where(gamma < float("inf"), objective, loss)
    if CORRECTS:
        divisor = tl.where(mean_weight > 0, mean_weight, 1.0)
        loss, slope = loss / divisor, slope / divisor
    factor = scalar(factor)
    total, total_objective = factor * loss, factor * objective
    info = info_ptr + num_labels * 3
    if k > 0:
        total += tl.load(total_ptr)
        total_objective += tl.load(info)
    tl.debug_barrier()  # all warps have read what one of them replaces
    tl.store(total_ptr, total)
    tl.store(info, total_objective)
    tl.store(losses_ptr + k, loss)
    tl.store(slopes_ptr + k, slope)
    tl.store(factors_ptr + k, factor)
    tl.store(info_ptr + 3 * k, objective)
    tl.store(info_ptr + 3 * k + 1, mean_weight)
    tl.store(anchors_ptr + k, num_anchors)
    if k == num_labels - 1:
        if num_labels > 1:
            mean_weight, num_anchors = _of_all_labels(
                weight_sum_ptr, num_pos_ptr, N, num_labels, BLOCK
            )
        tl.store(info + 1, mean_weight)
        tl.store(anchors_ptr + num_labels, num_anchors)
        tl.store(info + 2, collapse_of(sums_ptr, blocks, N, DP))


@bound
@triton.jit
def term_weights_kernel(
    norms_ptr,
    col_norms_ptr,
    num_norms,
    num_col_norms,
    N,
    M,
    tau,  # number or pointer
    lse_ptr,  # (N,) float32
    weight_sum_ptr,  # (K, N) float32
    num_pos_ptr,  # (K, N) int64
    slopes_ptr,  # (K,) float32
    factors_ptr,  # (K,) float32, lambda
    dtotal_ptr,  # () float32, or None
    dlosses_ptr,  # (K,) float32, or None
    c_ptr,  # (K, N) float32, out: dloss_i / |P(i)|
    weight_ptr,  # (M,) float32, out, as that of row_weights_kernel; 0 from row N on
    col_lse_ptr,  # (M,) float32, out: lse, 0 from row N on; None if M = N
    bound_ptr,  # () float32, out: of |c| and of |dlse|
    num_labels,
    BLOCK: tl.constexpr,
):
    """Turn the upstream gradients of the scalars into those of the rows."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = row < N
    dlse = tl.zeros((BLOCK,), tl.float32)
    bound = tl.zeros((), tl.float32)
    for k in range(num_labels):
        upstream = tl.zeros((), tl.float32)
        if dtotal_ptr is not None:
            upstream += tl.load(dtotal_ptr) * tl.load(factors_ptr + k)
        if dlosses_ptr is not None:
            upstream += tl.load(dlosses_ptr + k)
        slope = upstream * tl.load(slopes_ptr + k)
        bound += tl.abs(slope)
        place = row + tl.full((), k, tl.int64) * N
        num_pos = tl.maximum(tl.load(num_pos_ptr + place, mask=is_row, other=1), 1)
        c = slope / num_pos.to(tl.float32)
        tl.store(c_ptr + place, c, mask=is_row)
        dlse += c * tl.load(weight_sum_ptr + place, mask=is_row, other=0.0)
    tl.store(bound_ptr, bound, mask=tl.program_id(0) == 0)
    bounded = is_bounded(norms_ptr, col_norms_ptr, num_norms, num_col_norms, N, M, scalar(tau))
    lse = tl.load(lse_ptr + row, mask=is_row, other=0.0)
    weight = scaled_weight(dlse, lse, gradient_scale(bound), bounded)
    tl.store(weight_ptr + row, tl.where(is_row, weight, 0.0), mask=row < M)
    if col_lse_ptr is not None:
        tl.store(col_lse_ptr + row, lse, mask=row < M)
