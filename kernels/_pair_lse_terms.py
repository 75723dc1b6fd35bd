"""Kernels of the backward pass of `pair_lse`; the mathematics is in kernels/pair_lse.py."""

from __future__ import annotations

import triton
import triton.language as tl

from spcl_fast.kernels._pair_lse_forward import LOG2_E, exponent_scale, is_bounded, rounded_sim
from spcl_fast.kernels._tiles import load_tile, multiple_of, scalar

# log(2) in two parts, the first with so few bits that its products with small integers are exact.
_LN_2_HIGH = tl.constexpr(0.693359375)
_LN_2_LOW = tl.constexpr(-2.12194440054690583e-4)


@triton.jit
def gradient_scale(largest_ptr, refs_largest_ptr):
    """Return the power of two that brings 2 max|dlse|, which bounds |h_ij|, to about 2^14.

    float16 then holds every h_ij of some weight; 1 where there is no bound.
    """
    largest = tl.maximum(tl.load(largest_ptr), tl.load(refs_largest_ptr))
    exponent = 13.0 - tl.ceil(tl.log2(largest))
    exponent = tl.minimum(tl.maximum(exponent, -100.0), 100.0)
    return tl.where((largest > 0) & (largest < float("inf")), tl.exp2(exponent), 1.0)


@triton.jit
def row_weights_kernel(
    lse_ptr,  # (N,) float32
    dlse_ptr,  # (N,) float32
    norm_ptr,  # () float32
    refs_norm_ptr,  # () float32
    largest_ptr,  # () float32, max|dlse|
    refs_largest_ptr,  # () float32
    weight_ptr,  # (N,) float32, out: of exp(s_ij) where bounded, else of exp(s_ij - lse_i)
    tau,  # number or pointer
    N,
    BLOCK: tl.constexpr,
):
    """What h_ij needs of every row besides lse_i: its dlse_i, scaled, with what is common."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tau = scalar(tau)
    lse = tl.load(lse_ptr + rows, mask=rows < N, other=0.0)
    weight = tl.load(dlse_ptr + rows, mask=rows < N, other=0.0)
    weight *= gradient_scale(largest_ptr, refs_largest_ptr)
    if is_bounded(norm_ptr, refs_norm_ptr, tau):
        # exp(-lse) to the last bits: a product with log2(e) alone would round them off.
        power = tl.floor(lse * LOG2_E)
        rest = (lse - power * _LN_2_HIGH) - power * _LN_2_LOW
        weight *= tl.exp2(-power) * tl.exp2(-rest * LOG2_E)
    tl.store(weight_ptr + rows, weight, mask=rows < N)


@triton.jit
def _softmax(sim, lse):
    """Return exp(sim - lse), at most 1 also where both are so large that rounding differs by 1."""
    return tl.exp2(tl.minimum(sim - lse, 0.0, propagate_nan=tl.PropagateNan.ALL) * LOG2_E)


@triton.jit
def _h_tile(
    dots,  # (rows, cols)
    rows,
    cols,
    N,
    M,
    weight_i,
    lse_i,
    weight_j,
    lse_j,
    tau,
    is_edge,
    IS_SQUARE: tl.constexpr,
    IS_BOUNDED: tl.constexpr,
):
    """Return h_ij = a_i p_ij + a_j p_ji, scaled; 0 on the diagonal and outside."""
    if IS_BOUNDED:
        h_ij = tl.exp2(dots * exponent_scale(tau)) * (weight_i[:, None] + weight_j[None, :])
    else:
        sim = rounded_sim(dots, tau)
        h_ij = _softmax(sim, lse_i[:, None]) * weight_i[:, None]
        h_ij += _softmax(sim, lse_j[None, :]) * weight_j[None, :]
    if is_edge:
        valid = (rows < N)[:, None] & (cols < M)[None, :]
        if IS_SQUARE:
            valid &= rows[:, None] != cols[None, :]
        h_ij = tl.where(valid, h_ij, 0.0)
    return h_ij


@triton.jit
def row_gradient_kernel(
    z_ptr,  # (N, D)
    refs_ptr,  # (M, D), or z_ptr
    lse_ptr,  # (N,) float32
    weight_ptr,  # (N,) float32, from row_weights_kernel
    refs_lse_ptr,  # (M,) float32
    refs_weight_ptr,  # (M,) float32
    norm_ptr,  # () float32
    refs_norm_ptr,  # () float32
    largest_ptr,  # () float32
    refs_largest_ptr,  # () float32
    dz_ptr,  # (splits, N, D), out
    tau,  # number or pointer
    chunk,  # rows of refs that a program visits, a multiple of BLOCK_N
    N,
    M,
    D,
    stride_n,
    stride_d,
    refs_stride_n,
    refs_stride_d,
    BLOCK_M: tl.constexpr,  # rows of z owned by one program
    BLOCK_N: tl.constexpr,  # rows of refs visited per step
    BLOCK_D: tl.constexpr,
    ALIGNMENT: tl.constexpr,  # what D and the strides of rows are multiples of
    IS_SQUARE: tl.constexpr,
    IS_BOUNDED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dz_i = sum_j h_ij z_j / tau over a chunk of rows j, for BLOCK_M rows i."""
    tau = scalar(tau)
    if is_bounded(norm_ptr, refs_norm_ptr, tau) != IS_BOUNDED:
        return
    D = multiple_of(D, ALIGNMENT)
    stride_n = multiple_of(stride_n, ALIGNMENT)
    refs_stride_n = multiple_of(refs_stride_n, ALIGNMENT)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    z_i = load_tile(z_ptr, rows, N, d, D, stride_n, stride_d)
    weight_i = tl.load(weight_ptr + rows, mask=rows < N, other=0.0)
    lse_i = tl.load(lse_ptr + rows, mask=rows < N, other=0.0)

    dz = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    first = tl.program_id(1) * chunk
    last = tl.minimum(first + chunk, M)
    for first_col in range(first, last, BLOCK_N):
        cols = first_col + tl.arange(0, BLOCK_N)
        z_j = load_tile(refs_ptr, cols, M, d, D, refs_stride_n, refs_stride_d)
        weight_j = tl.load(refs_weight_ptr + cols, mask=cols < M, other=0.0)
        lse_j = tl.load(refs_lse_ptr + cols, mask=cols < M, other=0.0)
        dots = tl.dot(z_i, tl.trans(z_j), input_precision=PRECISION)
        is_edge = first_col + BLOCK_N > M
        if IS_SQUARE:
            first_row = tl.program_id(0) * BLOCK_M
            is_edge |= (first_col < first_row + BLOCK_M) & (first_row < first_col + BLOCK_N)
        h_ij = _h_tile(
            dots, rows, cols, N, M, weight_i, lse_i, weight_j, lse_j, tau,
            is_edge, IS_SQUARE, IS_BOUNDED,
        )  # fmt: skip
        dz = tl.dot(h_ij.to(z_j.dtype), z_j, dz, input_precision=PRECISION)

    dz *= 1.0 / (tau * gradient_scale(largest_ptr, refs_largest_ptr))
    offsets = (tl.program_id(1).to(tl.int64) * N + rows)[:, None] * D + d[None, :]
    mask = (rows < N)[:, None] & (d < D)[None, :]
    tl.store(dz_ptr + offsets, dz.to(dz_ptr.dtype.element_ty), mask=mask)


@triton.jit
def both_gradients_kernel(
    z_ptr,  # (N, D)
    refs_ptr,  # (M, D), or z_ptr
    lse_ptr,  # (N,) float32
    weight_ptr,  # (N,) float32, from row_weights_kernel
    refs_lse_ptr,  # (M,) float32
    refs_weight_ptr,  # (M,) float32
    norm_ptr,  # () float32
    refs_norm_ptr,  # () float32
    largest_ptr,  # () float32
    refs_largest_ptr,  # () float32
    dz_ptr,  # (N, D) float32, added to
    drefs_ptr,  # (M, D) float32, or dz_ptr, added to
    tau,  # number or pointer
    chunk,  # tiles of BLOCK_N rows of refs that a program visits
    N,
    M,
    D,
    stride_n,
    stride_d,
    refs_stride_n,
    refs_stride_d,
    BLOCK_M: tl.constexpr,  # rows of z owned by one program
    BLOCK_N: tl.constexpr,  # rows of refs visited per step, a divisor of BLOCK_M
    BLOCK_D: tl.constexpr,
    ALIGNMENT: tl.constexpr,  # what D and the strides of rows are multiples of
    IS_SQUARE: tl.constexpr,
    IS_BOUNDED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dz_i += h_ij z_j / tau and dz_j += h_ij z_i / tau, every unordered pair once."""
    tau = scalar(tau)
    if is_bounded(norm_ptr, refs_norm_ptr, tau) != IS_BOUNDED:
        return
    D = multiple_of(D, ALIGNMENT)
    stride_n = multiple_of(stride_n, ALIGNMENT)
    refs_stride_n = multiple_of(refs_stride_n, ALIGNMENT)
    block = tl.program_id(0)
    tiles = tl.cdiv(M, BLOCK_N)
    first = tl.program_id(1) * chunk
    last = tl.minimum(first + chunk, tiles)
    beyond = 0  # the first tile whose pairs are not visited in both orders
    if IS_SQUARE:
        first = tl.maximum(first, block * (BLOCK_M // BLOCK_N))
        beyond = (block + 1) * (BLOCK_M // BLOCK_N)
    if first >= last:
        return
    factor = 1.0 / (tau * gradient_scale(largest_ptr, refs_largest_ptr))
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    z_i = load_tile(z_ptr, rows, N, d, D, stride_n, stride_d)
    weight_i = tl.load(weight_ptr + rows, mask=rows < N, other=0.0)
    lse_i = tl.load(lse_ptr + rows, mask=rows < N, other=0.0)

    dz = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for tile in range(first, last):
        cols = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        z_j = load_tile(refs_ptr, cols, M, d, D, refs_stride_n, refs_stride_d)
        weight_j = tl.load(refs_weight_ptr + cols, mask=cols < M, other=0.0)
        lse_j = tl.load(refs_lse_ptr + cols, mask=cols < M, other=0.0)
        dots = tl.dot(z_i, tl.trans(z_j), input_precision=PRECISION)
        is_edge = (tile < beyond) | (tile + 1 == tiles) | ((block + 1) * BLOCK_M > N)
        h_ij = _h_tile(
            dots, rows, cols, N, M, weight_i, lse_i, weight_j, lse_j, tau,
            is_edge, IS_SQUARE, IS_BOUNDED,
        ).to(z_j.dtype)  # fmt: skip
        dz = tl.dot(h_ij, z_j, dz, input_precision=PRECISION)
        if tile >= beyond:
            dz_j = tl.dot(tl.trans(h_ij), z_i, input_precision=PRECISION) * factor
            _add_rows(drefs_ptr, cols, M, d, D, dz_j)
    _add_rows(dz_ptr, rows, N, d, D, dz * factor)


@triton.jit
def _add_rows(dz_ptr, rows, num_rows, d, D, values):
    offsets = rows.to(tl.int64)[:, None] * D + d[None, :]
    mask = (rows < num_rows)[:, None] & (d < D)[None, :]
    tl.atomic_add(dz_ptr + offsets, values, mask=mask, sem="relaxed")
