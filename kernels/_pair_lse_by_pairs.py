"""The backward of `pair_lse` by pairs: a tile of h serves dz_i and, by atomic additions, dz_j.

The mathematics is in kernels/pair_lse.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spcl_fast.kernels._config_tables import PAIR_LSE_BY_PAIRS, PAIR_LSE_BY_PAIRS_UNALIGNED
from spcl_fast.kernels._configs import dtype_name, pick
from spcl_fast.kernels._features import is_aligned, padded_features
from spcl_fast.kernels._pair_lse_pairs import NormedPairs, is_bounded
from spcl_fast.kernels._pair_lse_terms import Terms, gradient_scale, h_tile, operands
from spcl_fast.kernels._tiles import load_tile, multiple_of, scalar

# Multiply-adds per second in units of 1e12, from the data sheet of an H100, and additions to
# float32 memory in the same unit, a guess.
_MULTIPLY_ADDS = {"bf16": 495, "fp16": 495, "fp32 tf32": 247, "fp32 tf32x3": 82, "fp32 ieee": 30}
_ATOMIC_ADDS = 1.3


def adds_atomically(z: Tensor) -> bool:
    """Return whether the backward by pairs is allowed and expected to be faster.

    Per ordered pair and feature it saves half a multiply-add and costs 1 / (2 BLOCK_M) additions
    to memory.
    """
    name, block_d = dtype_name(z.dtype), padded_features(z.shape[1])
    if torch.are_deterministic_algorithms_enabled():
        return False
    if not any(known == name and size >= block_d for known, size, _ in PAIR_LSE_BY_PAIRS):
        return False
    config = pick("pair_lse_bwd_pairs", PAIR_LSE_BY_PAIRS, z.dtype, block_d, z.device)
    return 0.5 / _MULTIPLY_ADDS[name] > 1 / (2 * config.block_m * _ATOMIC_ADDS)


@triton.jit
def _add_rows(dz_ptr, rows, num_rows, d, D, values):
    offsets = rows.to(tl.int64)[:, None] * D + d[None, :]
    mask = (rows < num_rows)[:, None] & (d < D)[None, :]
    tl.atomic_add(dz_ptr + offsets, values, mask=mask, sem="relaxed")


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
    tiles_per_program,  # of BLOCK_N rows of refs
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
    ALIGNMENT: tl.constexpr,  # divides D and the row strides
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
    first = tl.program_id(1) * tiles_per_program
    last = tl.minimum(first + tiles_per_program, tiles)
    first_off_diagonal = 0  # tiles before it hold both orders of a pair
    if IS_SQUARE:
        first = tl.maximum(first, block * (BLOCK_M // BLOCK_N))
        first_off_diagonal = (block + 1) * (BLOCK_M // BLOCK_N)
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
        is_edge = (tile < first_off_diagonal) | (tile + 1 == tiles) | ((block + 1) * BLOCK_M > N)
        h_ij = h_tile(
            dots, rows, cols, N, M, weight_i, lse_i, weight_j, lse_j, tau,
            is_edge, IS_SQUARE=IS_SQUARE, IS_BOUNDED=IS_BOUNDED,
        ).to(z_j.dtype)  # fmt: skip
        dz = tl.dot(h_ij, z_j, dz, input_precision=PRECISION)
        if tile >= first_off_diagonal:
            dz_j = tl.dot(tl.trans(h_ij), z_i, input_precision=PRECISION) * factor
            _add_rows(drefs_ptr, cols, M, d, D, dz_j)
    _add_rows(dz_ptr, rows, N, d, D, dz * factor)


def gradients_by_pairs(
    pairs: NormedPairs, own: Terms, others: Terms
) -> tuple[Tensor, Tensor | None]:
    """Return dz (N, D), and drefs (M, D) if the references are not z."""
    z, refs = pairs.z, pairs.refs
    N, M, D = pairs.sizes()
    block_d = padded_features(D)
    table = PAIR_LSE_BY_PAIRS if is_aligned(z, refs) else PAIR_LSE_BY_PAIRS_UNALIGNED
    config = pick("pair_lse_bwd_pairs", table, z.dtype, block_d, z.device)
    num_blocks, num_tiles = triton.cdiv(N, config.block_m), triton.cdiv(M, config.block_n)
    visits = num_blocks * num_tiles // (2 if pairs.is_square else 1)
    tiles_per_program = max(1, triton.cdiv(visits, pairs.num_programs))
    dz = torch.zeros(N, D, device=z.device)
    drefs = dz if pairs.is_square else torch.zeros(M, D, device=z.device)
    constants = pairs.constants() | config.launch_options()
    for bounded in (True, False):
        both_gradients_kernel[(num_blocks, triton.cdiv(num_tiles, tiles_per_program))](
            *operands(pairs, own, others),
            dz,
            drefs,
            pairs.tau,
            tiles_per_program,
            *pairs.sizes(),
            *pairs.strides(),
            BLOCK_D=block_d,
            IS_BOUNDED=bounded,
            **constants,
        )
    return dz.to(z.dtype), None if pairs.is_square else drefs.to(z.dtype)
