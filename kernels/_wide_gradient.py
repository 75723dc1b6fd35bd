"""The backward of `pair_lse` for wide rows, those of more features than a program holds.

The mathematics is in kernels/pair_lse.py. By panels of rows: a kernel writes a panel of planes of
h_ij, with the similarities accumulated over blocks of features; their product with the planes of
the columns is then the gradient of the panel's rows. A row has one owner, so nothing is added
across programs. The product of bfloat16 rows is torch.mm's; several planes, and float16, whose
range h_ij / tau would leave, have a kernel that accumulates in float32.

Memory: O((N + M) D), or panels of 2^26 pairs: 128 MiB a plane. Multiply-adds: 2 N^2 D; against
references 2 N M D for each of the two gradients.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spcl_fast.kernels._bound import bound, cdiv
from spcl_fast.kernels._config_tables import H_PANEL, PANEL_PRODUCT
from spcl_fast.kernels._configs import pick
from spcl_fast.kernels._plane_products import products_by_steps, store_planes
from spcl_fast.kernels._row_weights import RowWeights, gradient_scale, h_tile
from spcl_fast.kernels._similarities import PlanePairs, as_scalar, is_bounded, scalar
from spcl_fast.kernels.hopper import _choice as hopper
from spcl_fast.precision import no_autocast

# A panel may have so many pairs of any rows: a single one for up to 8,192 rows.
_PANEL_PAIRS = 1 << 26
# Programs to aim at in a product of few rows and features: about two for each multiprocessor.
_PRODUCT_PROGRAMS = 256


@bound
@triton.jit
def h_panel_kernel(
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
    h_ptr,  # (P, rows of the panel, M), out
    h_plane,
    first_row,  # of the panel
    num_blocks,  # of BLOCK_M rows of the panel
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DP: tl.constexpr,
    P: tl.constexpr,
    EXCLUDES_SELF: tl.constexpr,
    IS_SCALED: tl.constexpr,  # keep the scale that brings h_ij into the range of float16
):
    """One tile of h_ij / tau, or of h_ij scaled; consecutive programs have the same columns."""
    tau = scalar(tau)
    first_in_panel = tl.program_id(0) % num_blocks * BLOCK_M
    first_col = tl.program_id(0) // num_blocks * BLOCK_N
    rows = first_row + first_in_panel + tl.arange(0, BLOCK_M)
    cols = first_col + tl.arange(0, BLOCK_N)
    weight_i = tl.load(weight_ptr + rows, mask=rows < N, other=0.0)
    lse_i = tl.load(lse_ptr + rows, mask=rows < N, other=0.0)
    weight_j = tl.load(col_weight_ptr + cols, mask=cols < M, other=0.0)
    lse_j = tl.load(col_lse_ptr + cols, mask=cols < M, other=0.0)
    is_edge = False  # pairs outside are not stored
    if EXCLUDES_SELF:
        first = first_row + first_in_panel
        is_edge = (first_col < first + BLOCK_M) & (first < first_col + BLOCK_N)
    if is_bounded(norms_ptr, col_norms_ptr, num_norms, num_col_norms, N, M, tau):
        dots = products_by_steps(
            z_ptr, rows, rows < N, plane, cols_ptr, cols, cols < M, col_plane, DP, BLOCK_D, P,
            IS_FINITE=True,
        )  # fmt: skip
        h_ij = h_tile(
            dots, rows, cols, N, M, weight_i, lse_i, weight_j, lse_j, tau, is_edge,
            EXCLUDES_SELF=EXCLUDES_SELF, IS_BOUNDED=True,
        )  # fmt: skip
    else:
        dots = products_by_steps(
            z_ptr, rows, rows < N, plane, cols_ptr, cols, cols < M, col_plane, DP, BLOCK_D, P,
            IS_FINITE=False,
        )  # fmt: skip
        h_ij = h_tile(
            dots, rows, cols, N, M, weight_i, lse_i, weight_j, lse_j, tau, is_edge,
            EXCLUDES_SELF=EXCLUDES_SELF, IS_BOUNDED=False,
        )  # fmt: skip
    if not IS_SCALED:
        h_ij *= 1.0 / (tau * gradient_scale(tl.load(bound_ptr)))
    offsets = (rows - first_row).to(tl.int64)[:, None] * M + cols[None, :]
    mask = (rows < N)[:, None] & (cols < M)[None, :]
    store_planes(h_ptr, h_ij, offsets, mask, h_plane, P)


@bound
@triton.jit
def panel_product_kernel(
    h_ptr,  # (P, num_rows, M) scaled
    cols_ptr,  # (P, M, DP)
    bound_ptr,  # () float32
    parts_ptr,  # (splits, num_rows, D), out
    tau,  # number or pointer
    num_rows,
    rows_per_program,  # of the columns, a multiple of BLOCK_K
    M,
    D,
    h_plane,
    col_plane,
    BLOCK_M: tl.constexpr,  # rows
    BLOCK_N: tl.constexpr,  # features
    BLOCK_K: tl.constexpr,  # columns of h per step
    DP: tl.constexpr,
    P: tl.constexpr,
):
    """sum_j h_ij z_j / tau over some columns j."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(2) * rows_per_program
    dz = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first_col in range(first, tl.minimum(first + rows_per_program, M), BLOCK_K):
        cols = first_col + tl.arange(0, BLOCK_K)
        offsets = rows.to(tl.int64)[:, None] * M + cols[None, :]
        mask = (rows < num_rows)[:, None] & (cols < M)[None, :]
        in_row = (cols < M)[:, None] & (d < DP)[None, :]
        z_offsets = cols.to(tl.int64)[:, None] * DP + d[None, :]
        for a in tl.static_range(P):
            h = h_ptr + tl.full((), a, tl.int64) * h_plane
            h_ij = tl.load(h + offsets, mask=mask, other=0.0)
            for b in tl.static_range(P - a):
                z = cols_ptr + tl.full((), b, tl.int64) * col_plane
                z_j = tl.load(z + z_offsets, mask=in_row, other=0.0)
                dz = tl.dot(h_ij, z_j, dz)
    dz *= 1.0 / (scalar(tau) * gradient_scale(tl.load(bound_ptr)))
    offsets = (tl.program_id(2).to(tl.int64) * num_rows + rows)[:, None] * D + d[None, :]
    mask = (rows < num_rows)[:, None] & (d < D)[None, :]
    tl.store(parts_ptr + offsets, dz.to(parts_ptr.dtype.element_ty), mask=mask)


def wide_gradient(pairs: PlanePairs, weights: RowWeights, dtype: torch.dtype) -> Tensor:
    """Return parts whose sum is dz, (parts, N, D), one in `dtype`, several in float32.

    A panel of rows is computed at a time; several parts come from a single panel.
    """
    N, M, D = pairs.num_rows, pairs.num_cols, pairs.rows.dim
    data, P = pairs.rows.data, pairs.rows.num_planes
    tiles = hopper.tiles_for(hopper.H_PANEL, pairs)
    block_m = pick("h_panel", H_PANEL, pairs.rows, data.device).block_m
    block_m = block_m if tiles is None else max(block_m, tiles.block_m)  # powers of 2
    fitting = max(pairs.part_bytes() // (P * data.element_size()), _PANEL_PAIRS) // M
    panel_rows = min(max(1, fitting // block_m), cdiv(N, block_m)) * block_m
    panel = torch.empty(P, min(panel_rows, N), M, dtype=data.dtype, device=data.device)
    uses_mm = dtype == data.dtype == torch.bfloat16
    if panel_rows >= N and not uses_mm:
        _fill_panel(panel, 0, pairs, weights, is_scaled=True)
        return _product_parts(panel, pairs, weights, dtype)
    dz = torch.empty(N, D, dtype=dtype, device=data.device)
    for first_row in range(0, N, panel_rows):
        h = panel[:, : N - first_row]
        _fill_panel(h, first_row, pairs, weights, is_scaled=not uses_mm)
        rows = dz[first_row : first_row + h.shape[1]]
        if uses_mm:
            with no_autocast(h.device):
                torch.mm(h[0], pairs.cols.data[0, :M, :D], out=rows)
            continue
        parts = _product_parts(h, pairs, weights, dtype, rows)
        if len(parts) > 1 and dtype == parts.dtype:
            torch.sum(parts, 0, out=rows)
        elif len(parts) > 1:
            rows.copy_(parts.sum(0))
    return dz.unsqueeze(0)


def _fill_panel(
    h: Tensor,  # (P, rows of the panel, M), out
    first_row: int,
    pairs: PlanePairs,
    weights: RowWeights,
    *,
    is_scaled: bool,
) -> None:
    tiles = hopper.tiles_for(hopper.H_PANEL, pairs)
    if tiles is not None:
        from spcl_fast.kernels.hopper.h_panel import fills_panel

        if fills_panel(h, first_row, pairs, weights, tiles, is_scaled=is_scaled):
            return
    config = pick("h_panel", H_PANEL, pairs.rows, h.device)
    blocks = cdiv(h.shape[1], config.block_m)
    h_panel_kernel[(blocks * cdiv(pairs.num_cols, config.block_n),)](
        *pairs.planes(),
        *pairs.bounds(),
        *weights,
        h,
        h.stride(0),
        first_row,
        blocks,
        BLOCK_D=pairs.rows.step,
        DP=pairs.rows.padded_dim,
        P=pairs.rows.num_planes,
        EXCLUDES_SELF=pairs.excludes_self,
        IS_SCALED=is_scaled,
        **config.launch_options(),
    )


def _product_parts(
    h: Tensor,
    pairs: PlanePairs,
    weights: RowWeights,
    dtype: torch.dtype,
    dz: Tensor | None = None,
) -> Tensor:
    """Return parts of dz_i = sum_j h_ij z_j / tau, (parts, rows, D), for scaled h (P, rows, M).

    A single one is in `dtype`, and is dz (rows, D) if that is given.
    """
    cols = pairs.cols
    num_rows, M, D = h.shape[1], pairs.num_cols, cols.dim
    config = pick("panel_product", PANEL_PRODUCT, cols, cols.data.device)
    tiles = cdiv(num_rows, config.block_m), cdiv(D, config.block_n)
    steps = cdiv(M, cols.step)
    splits = min(max(1, _PRODUCT_PROGRAMS // (tiles[0] * tiles[1])), steps)
    rows_per_program = cdiv(steps, splits) * cols.step
    splits = cdiv(M, rows_per_program)
    if splits == 1 and dz is not None:
        parts = dz.unsqueeze(0)
    else:
        dtype = torch.float32 if splits > 1 else dtype
        parts = torch.empty(splits, num_rows, D, dtype=dtype, device=h.device)
    panel_product_kernel[(*tiles, splits)](
        h,
        cols.data,
        weights.bound,
        parts,
        as_scalar(pairs.tau),
        num_rows,
        rows_per_program,
        M,
        D,
        h.stride(0),
        cols.stride,
        BLOCK_K=cols.step,
        DP=cols.padded_dim,
        P=cols.num_planes,
        **config.launch_options(),
    )
    return parts
