"""The backward of `pair_lse` by rows: a program owns dz_i and visits all j.

The mathematics is in kernels/pair_lse.py. No sum is shared between programs, so every run gives the
same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spcl_fast.kernels._config_tables import PAIR_LSE_BY_ROWS, PAIR_LSE_BY_ROWS_UNALIGNED
from spcl_fast.kernels._configs import pick
from spcl_fast.kernels._features import is_aligned, padded_features
from spcl_fast.kernels._pair_lse_pairs import NormedPairs, is_bounded
from spcl_fast.kernels._pair_lse_terms import Terms, gradient_scale, h_tile, operands
from spcl_fast.kernels._tiles import load_tile, multiple_of, scalar


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
    rows_per_program,  # of refs, a multiple of BLOCK_N
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
    ALIGNMENT: tl.constexpr,  # divides D and the row strides
    IS_SQUARE: tl.constexpr,
    IS_BOUNDED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dz_i = sum_j h_ij z_j / tau over some rows j, for BLOCK_M rows i."""
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
    first = tl.program_id(1) * rows_per_program
    last = tl.minimum(first + rows_per_program, M)
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
        h_ij = h_tile(
            dots, rows, cols, N, M, weight_i, lse_i, weight_j, lse_j, tau,
            is_edge, IS_SQUARE=IS_SQUARE, IS_BOUNDED=IS_BOUNDED,
        )  # fmt: skip
        dz = tl.dot(h_ij.to(z_j.dtype), z_j, dz, input_precision=PRECISION)

    dz *= 1.0 / (tau * gradient_scale(largest_ptr, refs_largest_ptr))
    offsets = (tl.program_id(1).to(tl.int64) * N + rows)[:, None] * D + d[None, :]
    mask = (rows < N)[:, None] & (d < D)[None, :]
    tl.store(dz_ptr + offsets, dz.to(dz_ptr.dtype.element_ty), mask=mask)


def gradient_by_rows(pairs: NormedPairs, own: Terms, others: Terms) -> Tensor:
    """Return dz (N, D); if there are few rows, programs share the columns of one block."""
    z, refs = pairs.z, pairs.refs
    N, M, D = pairs.sizes()
    block_d = padded_features(D)
    table = PAIR_LSE_BY_ROWS if is_aligned(z, refs) else PAIR_LSE_BY_ROWS_UNALIGNED
    config = pick("pair_lse_bwd", table, z.dtype, block_d, z.device)
    num_blocks, num_tiles = triton.cdiv(N, config.block_m), triton.cdiv(M, config.block_n)
    wanted = pairs.num_programs // 4 // num_blocks
    splits = max(1, min(wanted, pairs.part_bytes() // (4 * N * D), num_tiles))
    rows_per_program = triton.cdiv(num_tiles, splits) * config.block_n
    splits = triton.cdiv(M, rows_per_program)
    dtype = torch.float32 if splits > 1 else z.dtype
    dz = torch.empty(splits, N, D, dtype=dtype, device=z.device)
    constants = pairs.constants() | config.launch_options()
    for bounded in (True, False):
        row_gradient_kernel[(num_blocks, splits)](
            *operands(pairs, own, others),
            dz,
            pairs.tau,
            rows_per_program,
            *pairs.sizes(),
            *pairs.strides(),
            BLOCK_D=block_d,
            IS_BOUNDED=bounded,
            **constants,
        )
    return dz[0] if splits == 1 else dz.sum(0).to(z.dtype)
