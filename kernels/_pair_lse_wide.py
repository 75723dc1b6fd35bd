"""The backward of `pair_lse` for wide rows, those of more features than a program holds.

The mathematics is in kernels/pair_lse.py. By panels of rows: a kernel writes a panel of
h_ij (/ tau), with the similarities accumulated over blocks of features, in the dtype of the rows;
one matrix product with the other rows is then the gradient of the panel's rows. A row has one
owner, so nothing is added across programs. float32 is multiplied as in the rest of PyTorch
(torch.set_float32_matmul_precision). A float16 product that PyTorch rounds to float16 would
overflow, so there a kernel multiplies, into parts in float32.

Memory: O((N + M) D), with panels as large as that allows. Multiply-adds: 2 N^2 D; against
references 2 N M D for each of the two gradients.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spcl_fast.kernels._config_tables import PAIR_LSE_H_PANEL, PAIR_LSE_PANEL_PRODUCT
from spcl_fast.kernels._configs import Config, pick
from spcl_fast.kernels._features import dot_block, dot_precision
from spcl_fast.kernels._pair_lse_pairs import NormedPairs, is_bounded
from spcl_fast.kernels._pair_lse_terms import Terms, gradient_scale, h_tile, operands
from spcl_fast.kernels._tiles import dots_by_blocks, load_tile, multiple_of, scalar

# Columns of h per step of a product.
_BLOCK_K = 64
# Programs to aim at in a product of few rows and features: about two for each multiprocessor.
_PRODUCT_PROGRAMS = 256


@triton.jit
def h_panel_kernel(
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
    h_ptr,  # (rows of the panel, M), out
    tau,  # number or pointer
    first_row,  # of the panel
    num_blocks,  # of BLOCK_M rows of the panel
    N,
    M,
    D,
    stride_n,
    stride_d,
    refs_stride_n,
    refs_stride_d,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALIGNMENT: tl.constexpr,  # divides D and the row strides
    IS_SQUARE: tl.constexpr,
    IS_BOUNDED: tl.constexpr,
    IS_SCALED: tl.constexpr,  # keep the scale that brings h_ij into the range of float16
    PRECISION: tl.constexpr,
):
    """One tile of h_ij / tau, or of h_ij scaled; consecutive programs have the same columns."""
    tau = scalar(tau)
    if is_bounded(norm_ptr, refs_norm_ptr, tau) != IS_BOUNDED:
        return
    D = multiple_of(D, ALIGNMENT)
    stride_n = multiple_of(stride_n, ALIGNMENT)
    refs_stride_n = multiple_of(refs_stride_n, ALIGNMENT)
    first_in_panel = tl.program_id(0) % num_blocks * BLOCK_M
    first_col = tl.program_id(0) // num_blocks * BLOCK_N
    rows = first_row + first_in_panel + tl.arange(0, BLOCK_M)
    cols = first_col + tl.arange(0, BLOCK_N)
    dots = dots_by_blocks(
        z_ptr, rows, N, refs_ptr, cols, M, D,
        stride_n, stride_d, refs_stride_n, refs_stride_d, BLOCK_D, PRECISION,
    )  # fmt: skip
    weight_i = tl.load(weight_ptr + rows, mask=rows < N, other=0.0)
    lse_i = tl.load(lse_ptr + rows, mask=rows < N, other=0.0)
    weight_j = tl.load(refs_weight_ptr + cols, mask=cols < M, other=0.0)
    lse_j = tl.load(refs_lse_ptr + cols, mask=cols < M, other=0.0)
    is_edge = False  # pairs outside are not stored
    if IS_SQUARE:
        first = first_row + first_in_panel
        is_edge = (first_col < first + BLOCK_M) & (first < first_col + BLOCK_N)
    h_ij = h_tile(
        dots, rows, cols, N, M, weight_i, lse_i, weight_j, lse_j, tau,
        is_edge, IS_SQUARE=IS_SQUARE, IS_BOUNDED=IS_BOUNDED,
    )  # fmt: skip
    if not IS_SCALED:
        h_ij *= 1.0 / (tau * gradient_scale(largest_ptr, refs_largest_ptr))
    offsets = (rows - first_row).to(tl.int64)[:, None] * M + cols[None, :]
    mask = (rows < N)[:, None] & (cols < M)[None, :]
    tl.store(h_ptr + offsets, h_ij.to(h_ptr.dtype.element_ty), mask=mask)


@triton.jit
def panel_product_kernel(
    h_ptr,  # (num_rows, M) scaled, contiguous
    refs_ptr,  # (M, D)
    largest_ptr,  # () float32
    refs_largest_ptr,  # () float32
    parts_ptr,  # (splits, num_rows, D) float32, out
    tau,  # number or pointer
    num_rows,
    rows_per_program,  # of refs, a multiple of BLOCK_K
    M,
    D,
    refs_stride_n,
    refs_stride_d,
    BLOCK_M: tl.constexpr,  # rows
    BLOCK_N: tl.constexpr,  # features
    BLOCK_K: tl.constexpr,  # columns of h per step
):
    """sum_j h_ij z_j / tau over some rows j of refs."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(2) * rows_per_program
    dz = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first_col in range(first, tl.minimum(first + rows_per_program, M), BLOCK_K):
        cols = first_col + tl.arange(0, BLOCK_K)
        h_ij = load_tile(h_ptr, rows, num_rows, cols, M, M, 1)
        z_j = load_tile(refs_ptr, cols, M, d, D, refs_stride_n, refs_stride_d)
        dz = tl.dot(h_ij, z_j, dz)
    dz *= 1.0 / (scalar(tau) * gradient_scale(largest_ptr, refs_largest_ptr))
    offsets = (tl.program_id(2).to(tl.int64) * num_rows + rows)[:, None] * D + d[None, :]
    tl.store(parts_ptr + offsets, dz, mask=(rows < num_rows)[:, None] & (d < D)[None, :])


def gradient_of_wide_rows(pairs: NormedPairs, own: Terms, others: Terms) -> Tensor:
    """Return dz (N, D), a panel of rows at a time."""
    z, refs = pairs.z, pairs.refs
    N, M, D = pairs.sizes()
    block_d = dot_block(D, dot_precision(z.dtype))
    config = pick("pair_lse_bwd_wide", PAIR_LSE_H_PANEL, z.dtype, block_d, z.device)
    fitting = pairs.part_bytes() // (M * z.element_size())
    panel_blocks = min(max(1, fitting // config.block_m), triton.cdiv(N, config.block_m))
    panel_rows = panel_blocks * config.block_m
    panel = torch.empty(min(panel_rows, N), M, dtype=z.dtype, device=z.device)
    dz = torch.empty(N, D, dtype=z.dtype, device=z.device)
    for first_row in range(0, N, panel_rows):
        h = panel[: N - first_row]
        _fill_panel(h, first_row, pairs, own, others, config, block_d)
        rows = dz[first_row : first_row + h.shape[0]]
        if z.dtype == torch.float16:
            rows.copy_(_scaled_product(h, pairs, own, others))
        else:
            torch.mm(h, refs, out=rows)
    return dz


def _fill_panel(
    h: Tensor,  # (rows of the panel, M), out
    first_row: int,
    pairs: NormedPairs,
    own: Terms,
    others: Terms,
    config: Config,
    block_d: int,
) -> None:
    _, M, _ = pairs.sizes()
    blocks = triton.cdiv(h.shape[0], config.block_m)
    constants = pairs.constants() | config.launch_options()
    for bounded in (True, False):
        h_panel_kernel[(blocks * triton.cdiv(M, config.block_n),)](
            *operands(pairs, own, others),
            h,
            pairs.tau,
            first_row,
            blocks,
            *pairs.sizes(),
            *pairs.strides(),
            BLOCK_D=block_d,
            IS_BOUNDED=bounded,
            IS_SCALED=h.dtype == torch.float16,
            **constants,
        )


def _scaled_product(h: Tensor, pairs: NormedPairs, own: Terms, others: Terms) -> Tensor:
    """Return dz_i = sum_j h_ij z_j / tau, (rows, D) float32, of scaled h (rows, M)."""
    refs = pairs.refs
    num_rows, (_, M, D) = h.shape[0], pairs.sizes()
    config = pick(
        "pair_lse_bwd_wide_product", PAIR_LSE_PANEL_PRODUCT, refs.dtype, _BLOCK_K, refs.device
    )
    tiles = triton.cdiv(num_rows, config.block_m), triton.cdiv(D, config.block_n)
    steps = triton.cdiv(M, _BLOCK_K)
    splits = min(max(1, _PRODUCT_PROGRAMS // (tiles[0] * tiles[1])), steps)
    rows_per_program = triton.cdiv(steps, splits) * _BLOCK_K
    splits = triton.cdiv(M, rows_per_program)
    parts = torch.empty(splits, num_rows, D, device=h.device)
    panel_product_kernel[(*tiles, splits)](
        h,
        refs,
        own.largest,
        others.largest,
        parts,
        pairs.tau,
        num_rows,
        rows_per_program,
        M,
        D,
        *refs.stride(),
        BLOCK_K=_BLOCK_K,
        **config.launch_options(),
    )
    return parts.sum(0)
