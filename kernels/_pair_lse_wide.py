"""Gradients of `pair_lse` for rows of more features than a program holds.

The mathematics is in kernels/pair_lse.py. By panels of rows: a kernel writes a panel of
h_ij (/ tau), with the similarities accumulated over blocks of features, in the dtype of the rows;
one matrix product with the other rows is then the gradient of the panel's rows. A row has one
owner, so nothing is added across programs. float32 is multiplied as the rest of PyTorch does it
(torch.set_float32_matmul_precision). A product of float16 that PyTorch rounds to float16 would
overflow, so there a kernel multiplies, into parts in float32.

Memory: O((N + M) D), by panels as large as that allows. Multiply-adds: 2 N^2 D; against
references 2 N M D for each of the two gradients.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from spcl_fast.kernels._configs import Config, Key, pick
from spcl_fast.kernels._pair_lse_terms import _h_tile, gradient_scale
from spcl_fast.kernels._pair_lse_forward import is_bounded
from spcl_fast.kernels._positive_tiles import both_half_types, dot_block
from spcl_fast.kernels._tiles import (
    device_of,
    dot_precision,
    dots_by_blocks,
    launch_options,
    load_tile,
    multiple_of,
    row_alignment,
    scalar,
)
from spcl_fast.kernels.pair_lse import _Pairs, _Terms, _terms

# Columns per step of a product.
_BLOCK_K = 64
# Programs to aim at in a product of few rows and features: about two for each multiprocessor.
_NUM_PROGRAMS = 256

# None spills or repeats work in what Triton 3.8 compiles for sm_80 and sm_90, and all fit into the
# 99 KiB of shared memory that the smallest GPUs have.
H_PANEL: Mapping[Key, Config] = {
    **both_half_types(64, Config(128, 128, 8, 3)),  # 96 KiB on sm_90; a fourth stage is too many
    ("fp32 tf32", 64, 80): Config(128, 64, 8, 2),  # 128 x 128 has 128 KiB on sm_90
    ("fp32 tf32x3", 32, 80): Config(128, 64, 8, 2),  # 241 registers; 128 x 128 spills
    ("fp32 ieee", 32, 80): Config(64, 64, 8, 2),  # 4 warps take 255 registers
}
# 255 registers: a larger tile would spill.
PRODUCT: Mapping[Key, Config] = {("fp16", 64, 80): Config(128, 128, 8, 3)}


def pair_lse_bwd_wide(
    z: Tensor,  # (N, D) float32, bfloat16 or float16, any strides
    refs: Tensor | None,  # (M, D)
    lse: Tensor,  # (N,) float32
    lse_refs: Tensor | None,  # (M,) float32
    dlse: Tensor,  # (N,) float32
    dlse_refs: Tensor | None,  # (M,) float32
    tau: float | Tensor,
    *,
    needs_z: bool,
    needs_refs: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return dz (N, D) and drefs (M, D), contiguous, as `z`, None where not needed."""
    needs_refs = needs_refs and refs is not None
    if not (needs_z or needs_refs):
        return None, None
    pairs_exist = z.numel() > 0 and (refs is None or refs.numel() > 0)
    dz = torch.zeros(z.shape, dtype=z.dtype, device=z.device) if needs_z else None
    drefs = None
    if needs_refs and refs is not None:
        drefs = torch.zeros(refs.shape, dtype=z.dtype, device=z.device)
    if pairs_exist:
        with device_of(z):
            pairs = _Pairs.of(z, refs, tau)
            rows, others = _terms(pairs, lse, dlse, lse_refs, dlse_refs)
            if dz is not None:
                _fill_gradient(dz, pairs, rows, others)
            if drefs is not None:
                _fill_gradient(drefs, pairs.swapped(), others, rows)
    return dz, drefs


def _fill_gradient(dz: Tensor, pairs: _Pairs, own: _Terms, others: _Terms) -> None:
    """Write dz (N, D), a panel of rows at a time."""
    z, refs = pairs.z, pairs.refs
    N, M, D = pairs.sizes()
    precision = dot_precision(z.dtype)
    block_d = dot_block(D, precision)
    config = pick("pair_lse_bwd_wide", H_PANEL, z.dtype, block_d, z.device)
    fitting = pairs.part_bytes() // (M * z.element_size())
    panel_blocks = min(max(1, fitting // config.block_m), triton.cdiv(N, config.block_m))
    panel_rows = panel_blocks * config.block_m
    panel = torch.empty(min(panel_rows, N), M, dtype=z.dtype, device=z.device)
    for first_row in range(0, N, panel_rows):
        h = panel[: min(panel_rows, N - first_row)]
        blocks = triton.cdiv(h.shape[0], config.block_m)
        for bounded in (True, False):
            h_panel_kernel[(blocks * triton.cdiv(M, config.block_n),)](
                z,
                refs,
                own.lse,
                own.weight,
                others.lse,
                others.weight,
                pairs.norm,
                pairs.refs_norm,
                own.largest,
                others.largest,
                h,
                pairs.tau,
                first_row,
                blocks,
                N,
                M,
                D,
                *z.stride(),
                *refs.stride(),
                BLOCK_D=block_d,
                ALIGNMENT=row_alignment(z, refs),
                IS_SQUARE=pairs.is_square,
                IS_BOUNDED=bounded,
                IS_SCALED=z.dtype == torch.float16,
                PRECISION=precision,
                **launch_options(config),
            )
        rows = dz[first_row : first_row + h.shape[0]]
        if z.dtype == torch.float16:
            rows.copy_(_scaled_product(h, pairs, own, others))
        else:
            torch.mm(h, refs, out=rows)


def _scaled_product(h: Tensor, pairs: _Pairs, own: _Terms, others: _Terms) -> Tensor:
    """Return dz_i = sum_j h_ij z_j / tau, (rows, D) float32, of scaled h (rows, M)."""
    refs = pairs.refs
    num_rows, (_, M, D) = h.shape[0], pairs.sizes()
    config = pick("pair_lse_bwd_wide_product", PRODUCT, refs.dtype, _BLOCK_K, refs.device)
    tiles = triton.cdiv(num_rows, config.block_m), triton.cdiv(D, config.block_n)
    steps = triton.cdiv(M, _BLOCK_K)
    splits = min(max(1, _NUM_PROGRAMS // (tiles[0] * tiles[1])), steps)
    chunk = triton.cdiv(steps, splits) * _BLOCK_K
    splits = triton.cdiv(M, chunk)
    parts = torch.empty(splits, num_rows, D, device=h.device)
    panel_product_kernel[(*tiles, splits)](
        h,
        refs,
        own.largest,
        others.largest,
        parts,
        pairs.tau,
        num_rows,
        chunk,
        M,
        D,
        *refs.stride(),
        BLOCK_K=_BLOCK_K,
        **launch_options(config),
    )
    return parts.sum(0)


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
    ALIGNMENT: tl.constexpr,  # what D and the strides of rows are multiples of
    IS_SQUARE: tl.constexpr,
    IS_BOUNDED: tl.constexpr,
    IS_SCALED: tl.constexpr,  # leave in what brings h_ij into the range of float16
    PRECISION: tl.constexpr,
):
    """One tile of h_ij / tau, or of h_ij scaled; tiles of the same columns follow each other."""
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
    is_edge = False  # what is outside is not stored
    if IS_SQUARE:
        first = first_row + first_in_panel
        is_edge = (first_col < first + BLOCK_M) & (first < first_col + BLOCK_N)
    h_ij = _h_tile(
        dots, rows, cols, N, M, weight_i, lse_i, weight_j, lse_j, tau,
        is_edge, IS_SQUARE, IS_BOUNDED,
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
    chunk,  # columns of h that a program visits, a multiple of BLOCK_K
    M,
    D,
    refs_stride_n,
    refs_stride_d,
    BLOCK_M: tl.constexpr,  # rows
    BLOCK_N: tl.constexpr,  # features
    BLOCK_K: tl.constexpr,  # columns of h per step
):
    """sum_j h_ij z_j / tau over a chunk of columns j."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(2) * chunk
    dz = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first_col in range(first, tl.minimum(first + chunk, M), BLOCK_K):
        cols = first_col + tl.arange(0, BLOCK_K)
        h_ij = load_tile(h_ptr, rows, num_rows, cols, M, M, 1)
        z_j = load_tile(refs_ptr, cols, M, d, D, refs_stride_n, refs_stride_d)
        dz = tl.dot(h_ij, z_j, dz)
    dz *= 1.0 / (scalar(tau) * gradient_scale(largest_ptr, refs_largest_ptr))
    offsets = (tl.program_id(2).to(tl.int64) * num_rows + rows)[:, None] * D + d[None, :]
    tl.store(parts_ptr + offsets, dz, mask=(rows < num_rows)[:, None] & (d < D)[None, :])
