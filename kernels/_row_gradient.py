"""The backward of `pair_lse`: a program owns dz_i and visits all j.

The mathematics is in kernels/pair_lse.py. No sum is shared between programs, so every run gives the
same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spcl_fast.kernels._bound import bound, cdiv
from spcl_fast.kernels._config_tables import ROW_GRADIENT
from spcl_fast.kernels._configs import pick
from spcl_fast.kernels._plane_products import add_weighted, load_planes, products
from spcl_fast.kernels._row_weights import RowWeights, gradient_scale, h_tile
from spcl_fast.kernels._similarities import PlanePairs, is_bounded, scalar
from spcl_fast.kernels.hopper import _choice as hopper


@triton.jit
def _visit(
    dz, z_i, rows, N, weight_i, lse_i, cols_ptr, col_plane, first_col, M, col_lse_ptr,
    col_weight_ptr, tau, d, DP: tl.constexpr, P: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, EXCLUDES_SELF: tl.constexpr, IS_BOUNDED: tl.constexpr,
):  # fmt: skip
    """Return dz with h_ij z_j of BLOCK_N columns added."""
    cols = first_col + tl.arange(0, BLOCK_N)
    z_j = load_planes(cols_ptr, cols, cols < M, d, col_plane, DP, DP, P)
    weight_j = tl.load(col_weight_ptr + cols, mask=cols < M, other=0.0)
    lse_j = tl.load(col_lse_ptr + cols, mask=cols < M, other=0.0)
    dots = products(z_i, z_j, P, IS_BOUNDED)
    is_edge = first_col + BLOCK_N > M
    if EXCLUDES_SELF:
        first_row = tl.program_id(0) * BLOCK_M
        is_edge |= (first_col < first_row + BLOCK_M) & (first_row < first_col + BLOCK_N)
    h_ij = h_tile(
        dots, rows, cols, N, M, weight_i, lse_i, weight_j, lse_j, tau, is_edge,
        EXCLUDES_SELF=EXCLUDES_SELF, IS_BOUNDED=IS_BOUNDED,
    )  # fmt: skip
    return add_weighted(h_ij, z_j, dz, P)


@bound
@triton.jit
def row_gradient_kernel(
    z_ptr,  # (P, N, DP)
    cols_ptr,  # (P, M, DP)
    plane,  # stride
    col_plane,
    norms_ptr,
    col_norms_ptr,
    num_norms,
    num_col_norms,
    N,
    M,
    tau,  # number or pointer
    lse_ptr,  # (N,) float32
    weight_ptr,  # (N,) float32
    col_lse_ptr,  # (M,) float32
    col_weight_ptr,  # (M,) float32
    bound_ptr,  # () float32
    dz_ptr,  # (splits, N, D), out
    cols_per_program,  # a multiple of BLOCK_N
    D,
    BLOCK_M: tl.constexpr,  # rows owned by one program
    BLOCK_N: tl.constexpr,  # columns visited per step
    DP: tl.constexpr,
    P: tl.constexpr,
    EXCLUDES_SELF: tl.constexpr,
):
    """dz_i = sum_j h_ij z_j / tau over some columns j, for BLOCK_M rows i."""
    tau = scalar(tau)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, DP)
    z_i = load_planes(z_ptr, rows, rows < N, d, plane, DP, DP, P)
    weight_i = tl.load(weight_ptr + rows, mask=rows < N, other=0.0)
    lse_i = tl.load(lse_ptr + rows, mask=rows < N, other=0.0)

    dz = tl.zeros((BLOCK_M, DP), tl.float32)
    first = tl.program_id(1) * cols_per_program
    last = tl.minimum(first + cols_per_program, M)
    if is_bounded(norms_ptr, col_norms_ptr, num_norms, num_col_norms, N, M, tau):
        for first_col in range(first, last, BLOCK_N):
            dz = _visit(
                dz, z_i, rows, N, weight_i, lse_i, cols_ptr, col_plane, first_col, M,
                col_lse_ptr, col_weight_ptr, tau, d, DP, P, BLOCK_M, BLOCK_N, EXCLUDES_SELF,
                IS_BOUNDED=True,
            )  # fmt: skip
    else:
        # Both exponentials of a pair need registers.
        SHIFTED_N: tl.constexpr = BLOCK_N // 2 if DP == 256 and BLOCK_N > 32 else BLOCK_N
        for first_col in range(first, last, SHIFTED_N):
            dz = _visit(
                dz, z_i, rows, N, weight_i, lse_i, cols_ptr, col_plane, first_col, M,
                col_lse_ptr, col_weight_ptr, tau, d, DP, P, BLOCK_M, SHIFTED_N, EXCLUDES_SELF,
                IS_BOUNDED=False,
            )  # fmt: skip
        # LLVM would merge equal ends of both branches, and ptxas then serialises wgmma.
        tl.debug_barrier()
    dz *= 1.0 / (tau * gradient_scale(tl.load(bound_ptr)))
    first_row = tl.program_id(1).to(tl.int64) * N + tl.program_id(0) * BLOCK_M
    # 32 bits: where rows are no multiples of 16 bytes, each element has an offset.
    offsets = tl.arange(0, BLOCK_M)[:, None] * D + d[None, :]
    mask = (rows < N)[:, None] & (d < D)[None, :]
    tl.store(dz_ptr + first_row * D + offsets, dz.to(dz_ptr.dtype.element_ty), mask=mask)


def row_gradient_parts(pairs: PlanePairs, weights: RowWeights, dtype: torch.dtype) -> Tensor:
    """Return parts whose sum is dz, (splits, N, D); in `dtype` if there is one, else float32.

    If there are few rows, programs share the columns of one block.
    """
    tiles = hopper.tiles_for(hopper.ROW_GRADIENT, pairs)
    if tiles is not None:
        from spcl_fast.kernels.hopper.row_gradient import fills_row_gradient

        cols_per_program, parts = _empty_parts(pairs, tiles.block_m, tiles.block_n, dtype)
        if fills_row_gradient(parts, pairs, weights, cols_per_program, tiles):
            return parts
    config = pick("row_gradient", ROW_GRADIENT, pairs.rows, pairs.rows.data.device)
    cols_per_program, parts = _empty_parts(pairs, config.block_m, config.block_n, dtype)
    row_gradient_kernel[(cdiv(pairs.num_rows, config.block_m), len(parts))](
        *pairs.planes(),
        *pairs.bounds(),
        *weights,
        parts,
        cols_per_program,
        pairs.rows.dim,
        DP=pairs.rows.padded_dim,
        P=pairs.rows.num_planes,
        EXCLUDES_SELF=pairs.excludes_self,
        **config.launch_options(),
    )
    return parts


def _empty_parts(
    pairs: PlanePairs, block_m: int, block_n: int, dtype: torch.dtype
) -> tuple[int, Tensor]:
    """Return how many columns a program visits, and parts for what it finds."""
    N, M, D = pairs.num_rows, pairs.num_cols, pairs.rows.dim
    num_tiles = cdiv(M, block_n)
    wanted = pairs.num_programs // 4 // cdiv(N, block_m)
    splits = max(1, min(wanted, pairs.part_bytes() // (4 * N * D), num_tiles))
    cols_per_program = cdiv(num_tiles, splits) * block_n
    splits = cdiv(M, cols_per_program)
    dtype = torch.float32 if splits > 1 else dtype
    return cols_per_program, torch.empty(splits, N, D, dtype=dtype, device=pairs.rows.data.device)
