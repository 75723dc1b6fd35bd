"""Kernels of InfoNCE beside those over pairs: its positives are the pairs (i, i).

The mathematics is in spcl_fast/ops/infonce_terms.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spcl_fast.kernels._bound import bound
from spcl_fast.kernels._planes import product
from spcl_fast.kernels._positive_kernels import summed_parts
from spcl_fast.kernels._row_weights import gradient_scale, scaled_weight
from spcl_fast.kernels._similarities import is_bounded, scalar
from spcl_fast.kernels._term_kernels import collapse_of


@bound
@triton.jit
def diagonal_losses_kernel(
    z_ptr,  # (N, D)
    refs_ptr,  # (M, D)
    lse_ptr,  # (N,) float32
    refs_lse_ptr,  # (M,) float32, or None for one direction
    losses_ptr,  # (blocks,) float32, out: sums of the losses of ROWS rows
    tau,  # number or pointer
    N,
    D,
    stride_n,
    stride_d,
    refs_stride_n,
    refs_stride_d,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sum the losses of the pairs (i, i), in float32 for rows of any dtype."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = row < N
    dots = tl.zeros((ROWS,), tl.float32)
    for begin in range(0, D, BLOCK_D):
        d = begin + tl.arange(0, BLOCK_D)
        mask = is_row[:, None] & (d < D)[None, :]
        i, e = row.to(tl.int64)[:, None], d.to(tl.int64)[None, :]
        z = tl.load(z_ptr + i * stride_n + e * stride_d, mask=mask, other=0.0)
        refs = tl.load(refs_ptr + i * refs_stride_n + e * refs_stride_d, mask=mask, other=0.0)
        dots += tl.sum(product(z.to(tl.float32), refs.to(tl.float32)), 1)
    lse = tl.load(lse_ptr + row, mask=is_row, other=0.0)
    if refs_lse_ptr is not None:
        lse = 0.5 * (lse + tl.load(refs_lse_ptr + row, mask=is_row, other=0.0))
    losses = tl.where(is_row, lse - tl.div_rn(dots, tl.zeros_like(dots) + scalar(tau)), 0.0)
    tl.store(losses_ptr + tl.program_id(0), tl.sum(losses, 0))


@bound
@triton.jit
def reduce_diagonal_kernel(
    losses_ptr,  # (num_losses,) float32
    sums_ptr,  # (blocks, DP + 1) float32, from planes_kernel
    loss_ptr,  # () float32, out
    info_ptr,  # (3,) float32, out: loss, mean weight, collapse
    count_ptr,  # () int64, out
    num_losses,
    blocks,
    N,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Reduce the losses to their mean, in one program."""
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, num_losses, BLOCK):
        place = first + tl.arange(0, BLOCK)
        total += tl.load(losses_ptr + place, mask=place < num_losses, other=0.0)
    loss = tl.sum(total, 0) / N
    tl.store(loss_ptr, loss)
    tl.store(info_ptr, loss)
    tl.store(info_ptr + 1, 1.0)
    tl.store(info_ptr + 2, collapse_of(sums_ptr, blocks, N, DP))
    tl.store(count_ptr, N)


@bound
@triton.jit
def diagonal_weights_kernel(
    norms_ptr,
    col_norms_ptr,
    num_norms,
    num_col_norms,
    N,
    M,
    tau,  # number or pointer
    lse_ptr,  # (N,) float32
    refs_lse_ptr,  # (M,) float32
    dloss_ptr,  # () float32
    weight_ptr,  # (N,) float32, out, as that of row_weights_kernel
    refs_weight_ptr,  # (M,) float32, out
    bound_ptr,  # () float32, out: |dloss / N|
    IS_SYMMETRIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Weigh the rows, and with program_id(1) = 1 the references."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = tl.load(dloss_ptr) / N
    scale = gradient_scale(tl.abs(c))
    bounded = is_bounded(norms_ptr, col_norms_ptr, num_norms, num_col_norms, N, M, scalar(tau))
    if tl.program_id(1) == 0:
        lse = tl.load(lse_ptr + place, mask=place < N, other=0.0)
        weight = scaled_weight(0.5 * c if IS_SYMMETRIC else c, lse, scale, bounded)
        tl.store(weight_ptr + place, weight, mask=place < N)
        tl.store(bound_ptr, tl.abs(c), mask=tl.program_id(0) == 0)
    else:
        weight = tl.zeros((BLOCK,), tl.float32)
        if IS_SYMMETRIC:
            lse = tl.load(refs_lse_ptr + place, mask=place < M, other=0.0)
            weight = scaled_weight(0.5 * c, lse, scale, bounded)
        tl.store(refs_weight_ptr + place, weight, mask=place < M)


@bound
@triton.jit
def add_diagonal_kernel(
    z_ptr,  # (N, D)
    refs_ptr,  # (M, D)
    parts_ptr,  # (num_parts, N, D), or None
    refs_parts_ptr,  # (num_refs_parts, M, D), or None
    dz_ptr,  # (N, D), out
    drefs_ptr,  # (M, D), out
    dloss_ptr,  # () float32
    tau,  # number or pointer
    num_parts,
    num_refs_parts,
    N,
    M,
    D,
    stride_n,
    stride_d,
    refs_stride_n,
    refs_stride_d,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sum parts of dz, less c r_i / tau; with program_id(2) = 1 of drefs, less c z_i / tau."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    i, e = row.to(tl.int64)[:, None], d.to(tl.int64)[None, :]
    offsets = i * D + e
    is_pair = (row < N)[:, None] & (d < D)[None, :]
    factor = tl.load(dloss_ptr) / (N * scalar(tau))
    if tl.program_id(2) == 0:
        if parts_ptr is not None:
            stride = tl.full((), N, tl.int64) * D
            total = summed_parts(parts_ptr, num_parts, stride, offsets, is_pair)
            place = i * refs_stride_n + e * refs_stride_d
            other = tl.load(refs_ptr + place, mask=is_pair, other=0.0)
            total -= factor * other.to(tl.float32)
            tl.store(dz_ptr + offsets, total.to(dz_ptr.dtype.element_ty), mask=is_pair)
    elif refs_parts_ptr is not None:
        mask = (row < M)[:, None] & (d < D)[None, :]
        stride = tl.full((), M, tl.int64) * D
        total = summed_parts(refs_parts_ptr, num_refs_parts, stride, offsets, mask)
        other = tl.load(z_ptr + i * stride_n + e * stride_d, mask=is_pair, other=0.0)
        total -= factor * other.to(tl.float32)
        tl.store(drefs_ptr + offsets, total.to(drefs_ptr.dtype.element_ty), mask=mask)
