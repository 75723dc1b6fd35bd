"""`infonce_terms` in Triton; the mathematics is in spcl_fast/ops/infonce_terms.py.

Forward:  planes of both sides | sums of exp | merge of both | losses of the diagonal | reduction.
Backward: weights of both sides | gradient of each | both, with the diagonal, in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spcl_fast.kernels._bound import bound, cdiv
from spcl_fast.kernels._pair_sums import fill_lse
from spcl_fast.kernels._planes import ROWS_OF_PLANES, Planes, num_planes, planes_of, product
from spcl_fast.kernels._positive_kernels import summed_parts
from spcl_fast.kernels._replay import replayed
from spcl_fast.kernels._row_weights import RowWeights, gradient_scale, scaled_weight
from spcl_fast.kernels._similarities import (
    PlanePairs,
    as_scalar,
    device_of,
    is_bounded,
    scalar,
)
from spcl_fast.kernels._tape import Results
from spcl_fast.kernels._term_kernels import collapse_of
from spcl_fast.kernels.pair_lse import gradient_parts
from spcl_fast.operands import Gradients, InfoNCETerms, Kept, Pairs

_ROWS = 64
_BLOCK_D = 64
_REDUCED = 1024
_WEIGHT_ROWS = 256


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


def _plane_pairs(planes: Planes, blocks: int, pairs: Pairs) -> PlanePairs:
    """Return anchors against references, whose planes follow one another."""
    assert pairs.refs is not None
    N = pairs.z.shape[0]
    rows = Planes(planes.data, planes.norms[:blocks], planes.sums, planes.dim, blocks)
    cols = Planes(planes.data[:, N:], planes.norms[blocks:], planes.sums, planes.dim, blocks)
    return PlanePairs(rows, cols, N, pairs.refs.shape[0], pairs.tau, excludes_self=False)


def infonce_terms_fwd(
    pairs: Pairs,
    *,
    symmetric: bool,
    has_backward: bool,  # what the backward needs is small
) -> tuple[InfoNCETerms, Kept]:
    """Return the terms, and what the backward needs: lse of the references, planes, norms."""

    def run(_: Sequence[float]) -> tuple[Results, Results]:
        return _forward(pairs, symmetric=symmetric)

    tensors, key = _arguments(pairs)
    results, kept = replayed(("infonce_terms_fwd", *key, symmetric), tensors, (), (), run)
    return InfoNCETerms._make(results[:-1]), kept


def infonce_terms_bwd(
    pairs: Pairs,
    lse: Tensor,  # (N,) float32
    kept: Kept,
    dloss: Tensor,
    *,
    symmetric: bool,
    needs_z: bool,
    needs_refs: bool,
) -> Gradients:
    """Return dz (N, D) and drefs (M, D), as `z`, None where not needed."""

    def run(_: Sequence[float]) -> tuple[Results, Results]:
        state = lse, *kept.tensors()
        return _backward(
            pairs, state, dloss, symmetric=symmetric, needs_z=needs_z, needs_refs=needs_refs
        ), ()

    tensors, key = _arguments(pairs)
    key = "infonce_terms_bwd", *key, symmetric, needs_z, needs_refs
    gradients, _ = replayed(key, [*tensors, dloss], (lse, *kept.memory), (), run)
    return Gradients._make(gradients)


def _arguments(pairs: Pairs) -> tuple[list[Tensor | None], tuple[Any, ...]]:
    """Return the tensors, and what else `replayed` must know of."""
    z, refs, tau = pairs
    if isinstance(tau, float):
        return [z, refs], (num_planes(z.dtype), tau)
    return [z, refs, tau], (num_planes(z.dtype),)


def _forward(pairs: Pairs, *, symmetric: bool) -> tuple[Results, Results]:
    z, refs, tau = pairs
    assert refs is not None
    N, D = z.shape
    lse = torch.empty(N, dtype=torch.float32, device=z.device)
    refs_lse = lse.new_empty(refs.shape[0]) if symmetric else None
    loss, info = lse.new_empty(()), lse.new_empty(3)
    count = torch.empty((), dtype=torch.int64, device=z.device)
    blocks = cdiv(N, _ROWS)
    losses = lse.new_empty(blocks)
    with device_of(z):
        planes = planes_of(z, refs)
        fill_lse(_plane_pairs(planes, planes.first_blocks, pairs), lse, refs_lse)
        diagonal_losses_kernel[(blocks,)](
            *(z, refs, lse, refs_lse, losses),
            as_scalar(tau),
            N,
            D,
            *z.stride(),
            *refs.stride(),
            ROWS=_ROWS,
            BLOCK_D=_BLOCK_D,
        )
        reduce_diagonal_kernel[(1,)](
            *(losses, planes.sums, loss, info, count),
            blocks,
            planes.first_blocks,
            N,
            DP=planes.padded_dim,
            BLOCK=_REDUCED,
        )
    objective, mean_weight, collapse = info.unbind()
    terms = InfoNCETerms(loss, objective, mean_weight, count, collapse, lse)
    return (*terms, info), (refs_lse, planes.data, planes.norms)


def _backward(
    pairs: Pairs,
    state: Sequence[Tensor | None],
    dloss: Tensor,
    *,
    symmetric: bool,
    needs_z: bool,
    needs_refs: bool,
) -> Gradients:
    z, refs, tau = pairs
    lse, refs_lse, data, norms = state
    assert refs is not None
    assert lse is not None
    assert data is not None
    assert norms is not None
    (N, D), M = z.shape, refs.shape[0]
    blocks = cdiv(N, ROWS_OF_PLANES)
    planes = _plane_pairs(Planes(data, norms, norms, D, blocks), blocks, pairs)
    weight, refs_weight, size = lse.new_empty(N), lse.new_empty(M), lse.new_empty(())
    dz = torch.empty_like(z, memory_format=torch.contiguous_format) if needs_z else None
    drefs = torch.empty_like(refs, memory_format=torch.contiguous_format) if needs_refs else None
    with device_of(z):
        diagonal_weights_kernel[(cdiv(M, _WEIGHT_ROWS), 2)](
            *planes.bounds(),
            *(lse, refs_lse if symmetric else lse, dloss, weight, refs_weight, size),
            IS_SYMMETRIC=symmetric,
            BLOCK=_WEIGHT_ROWS,
        )
        # without a second direction any finite lse_j will do: its weight is 0
        col_lse = refs_weight if refs_lse is None else refs_lse
        weights = RowWeights(lse, weight, col_lse, refs_weight, size)
        parts = refs_parts = None
        if needs_z:
            parts = gradient_parts(planes, weights, torch.float32)
        if needs_refs:
            refs_parts = gradient_parts(planes.swapped(), weights.swapped(), torch.float32)
        add_diagonal_kernel[(cdiv(M, _ROWS), cdiv(D, _BLOCK_D), 2)](
            *(z, refs, parts, refs_parts, dz, drefs, dloss),
            as_scalar(tau),
            0 if parts is None else parts.shape[0],
            0 if refs_parts is None else refs_parts.shape[0],
            *(N, M, D),
            *z.stride(),
            *refs.stride(),
            ROWS=_ROWS,
            BLOCK_D=_BLOCK_D,
        )
    return Gradients(dz, drefs)
