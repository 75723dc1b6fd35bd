"""Kernels of the forward pass of `pair_lse`; the mathematics is in kernels/pair_lse.py."""

from __future__ import annotations

import triton
import triton.language as tl

from spcl_fast.kernels._tiles import dots_by_blocks, load_tile, multiple_of, scalar

LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)
# exp(64) summed over 2^24 rows, and exp(-64), are float32 numbers with room to spare.
MAX_EXPONENT = tl.constexpr(64.0)
_FLOAT32_MAX = tl.constexpr(3.4028234663852886e38)


@triton.jit
def is_bounded(norm_ptr, refs_norm_ptr, tau):
    """Return whether |s_ij| <= MAX_EXPONENT for all pairs; not where a norm is NaN."""
    return tl.load(norm_ptr) * tl.load(refs_norm_ptr) < tau * MAX_EXPONENT


@triton.jit
def exponent_scale(tau):
    """Return log2(e) / tau, correctly rounded: its error is in every exponent."""
    return tl.div_rn(tl.full((), LOG2_E, tl.float32), tau)


@triton.jit
def rounded_sim(dots, tau):
    """Return z_i . z_j / tau, rounded before anything is subtracted from it.

    Where one term decides, lse_i then equals its sim, and exp(sim - lse_i) is 1 whatever the size
    of lse_i. The compiler fuses a product with a difference, but not an fma.
    """
    one = tl.full((), 1.0, tl.float32)
    inv_tau = tl.div_rn(one, tau)
    rest = tl.fma(-tau, inv_tau, one) * inv_tau  # of 1 / tau
    # What is infinite stays so: times a rest of 0 or of the other sign it would become NaN.
    correction = tl.where(tl.abs(dots) < float("inf"), dots * rest, 0.0)
    return tl.fma(dots, inv_tau, correction)


@triton.jit
def _finite(shift):
    """Keep inf - inf out of a shifted sum: what is infinite stays so, and does not become NaN."""
    return tl.minimum(tl.maximum(shift, -_FLOAT32_MAX), _FLOAT32_MAX)


@triton.jit
def pair_sums_kernel(
    z_ptr,  # (N, D)
    refs_ptr,  # (M, D), or z_ptr
    norm_ptr,  # () float32, largest norm of a row of z
    refs_norm_ptr,  # () float32
    own_ptr,  # (chunks, own_stride) float32, out: parts of the rows of z
    visited_ptr,  # (blocks, visited_stride) float32, out: parts of the rows of refs
    tau,  # number or pointer
    first_block,  # of BLOCK_M rows of z
    chunk,  # tiles of BLOCK_N rows of refs that a program visits
    N,
    M,
    D,
    own_stride,
    visited_stride,
    stride_n,
    stride_d,
    refs_stride_n,
    refs_stride_d,
    BLOCK_M: tl.constexpr,  # rows of z owned by one program
    BLOCK_N: tl.constexpr,  # rows of refs visited per step, a divisor of BLOCK_M
    BLOCK_D: tl.constexpr,
    ALIGNMENT: tl.constexpr,  # what D and the strides of rows are multiples of
    IS_SQUARE: tl.constexpr,
    IS_WIDE: tl.constexpr,  # D > BLOCK_D
    IS_BOUNDED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sum exp(s_ij) over a chunk of tiles: of every owned row, and over the block of every visited.

    Bounded, parts are sums of exp; else they are log-sum-exps. A tile is (visited, owned): then
    the sum over owned rows stays within a warp, and the other is reduced across warps only once.
    """
    tau = scalar(tau)
    if is_bounded(norm_ptr, refs_norm_ptr, tau) != IS_BOUNDED:
        return
    D = multiple_of(D, ALIGNMENT)
    stride_n = multiple_of(stride_n, ALIGNMENT)
    refs_stride_n = multiple_of(refs_stride_n, ALIGNMENT)
    block = first_block + tl.program_id(0)
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    own_parts = own_ptr + tl.program_id(1).to(tl.int64) * own_stride + rows - first_block * BLOCK_M
    visited_parts = visited_ptr + tl.program_id(0).to(tl.int64) * visited_stride
    tiles = tl.cdiv(M, BLOCK_N)
    first = tl.program_id(1) * chunk
    last = tl.minimum(first + chunk, tiles)
    beyond = 0  # the first tile whose pairs are not visited in both orders
    if IS_SQUARE:
        first = tl.maximum(first, block * (BLOCK_M // BLOCK_N))
        beyond = (block + 1) * (BLOCK_M // BLOCK_N)
    scale = exponent_scale(tau)
    d = tl.arange(0, BLOCK_D)
    if not IS_WIDE:
        z_i = load_tile(z_ptr, rows, N, d, D, stride_n, stride_d)

    sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    shift = tl.full((BLOCK_M,), -_FLOAT32_MAX, tl.float32)
    own_sum = tl.zeros((BLOCK_M,), tl.float32)
    for tile in range(first, last):
        cols = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        if IS_WIDE:
            dots = dots_by_blocks(
                refs_ptr, cols, M, z_ptr, rows, N, D,
                refs_stride_n, refs_stride_d, stride_n, stride_d, BLOCK_D, PRECISION,
            )  # fmt: skip
        else:
            z_j = load_tile(refs_ptr, cols, M, d, D, refs_stride_n, refs_stride_d)
            dots = tl.dot(z_j, tl.trans(z_i), input_precision=PRECISION)
        # Only tiles at an end or on the diagonal hold pairs that do not count.
        if (tile < beyond) | (tile + 1 == tiles) | ((block + 1) * BLOCK_M > N):
            valid = (cols < M)[:, None] & (rows < N)[None, :]
            if IS_SQUARE:
                valid &= cols[:, None] != rows[None, :]
            dots = tl.where(valid, dots, -float("inf"))
        if IS_BOUNDED:
            exps = tl.exp2(dots * scale)
            sums += exps
            part = tl.sum(exps, 1)
        else:
            sim = rounded_sim(dots, tau)
            shift_j = _finite(tl.max(sim, 1))
            exps = tl.exp2((sim - shift_j[:, None]) * LOG2_E)
            part = shift_j + tl.log2(tl.sum(exps, 1)) * _LN_2
            larger = tl.maximum(shift, _finite(tl.max(sim, 0)))
            own_sum *= tl.exp2((shift - larger) * LOG2_E)
            own_sum += tl.sum(tl.exp2((sim - larger[None, :]) * LOG2_E), 0)
            shift = larger
        tl.store(visited_parts + cols, part, mask=(cols < M) & (tile >= beyond))
    if IS_BOUNDED:
        own = tl.sum(sums, 0)
    else:
        own = shift + tl.log2(own_sum) * _LN_2
    tl.store(own_parts, own, mask=rows < N)


@triton.jit
def merge_parts_kernel(
    parts_ptr,  # (num_parts, stride) float32
    lse_ptr,  # (N,) float32, in and out
    norm_ptr,  # () float32
    refs_norm_ptr,  # () float32
    tau,  # number or pointer
    num_parts,
    first_row,  # of lse
    last_row,
    first_part_row,  # of the parts: row first_row has column first_row - first_part_row
    first_block,  # of the part in line 0
    stride,
    BLOCK: tl.constexpr,  # rows of lse owned by one program
    BLOCK_M: tl.constexpr,  # rows of z owned by one program of pair_sums_kernel
    BLOCK_K: tl.constexpr,  # parts per step
    IS_TRIANGULAR: tl.constexpr,  # a row has parts of the blocks before its own only
    IS_FIRST: tl.constexpr,  # lse holds nothing yet
    IS_LAST: tl.constexpr,  # lse becomes the log-sum-exp
):
    """Add parts in the order of their blocks; between panels lse holds what parts hold."""
    rows = first_row + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    num_valid = tl.full((BLOCK,), 0, tl.int32) + num_parts
    if IS_TRIANGULAR:
        num_valid = tl.minimum(num_valid, rows // BLOCK_M - first_block)
    in_range = rows < last_row
    bounded = is_bounded(norm_ptr, refs_norm_ptr, scalar(tau))
    neutral = tl.where(bounded, 0.0, -float("inf"))
    total = tl.full((BLOCK,), 0.0, tl.float32) + neutral
    if not IS_FIRST:
        total = tl.load(lse_ptr + rows, mask=in_range, other=0.0)
    for first in range(0, num_parts, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        offsets = k.to(tl.int64)[:, None] * stride + (rows - first_part_row)[None, :]
        mask = (k[:, None] < num_valid[None, :]) & in_range[None, :]
        parts = tl.load(parts_ptr + offsets, mask=mask, other=neutral)
        if bounded:
            total += tl.sum(parts, 0)
        else:
            shift = _finite(tl.maximum(total, tl.max(parts, 0)))
            exps = tl.exp2((parts - shift[None, :]) * LOG2_E)
            exps_sum = tl.sum(exps, 0) + tl.exp2((total - shift) * LOG2_E)
            total = shift + tl.log2(exps_sum) * _LN_2
    if IS_LAST:
        if bounded:
            total = tl.log2(total) * _LN_2
    tl.store(lse_ptr + rows, total, mask=in_range)
