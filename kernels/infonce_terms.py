"""`infonce_terms` in Triton; the mathematics is in spcl_fast/ops/infonce_terms.py.

Forward:  planes of both sides | sums of exp | merge of both | losses of the diagonal | reduction.
Backward: weights of both sides | gradient of each | both, with the diagonal, in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spcl_fast.kernels._bound import cdiv
from spcl_fast.kernels._diagonal_kernels import (
    add_diagonal_kernel,
    diagonal_losses_kernel,
    diagonal_weights_kernel,
    reduce_diagonal_kernel,
)
from spcl_fast.kernels._pair_sums import fill_lse
from spcl_fast.kernels._planes import ROWS_OF_PLANES, Planes, num_planes, planes_of
from spcl_fast.kernels._replay import replayed
from spcl_fast.kernels._row_weights import RowWeights
from spcl_fast.kernels._similarities import PlanePairs, as_scalar, device_of
from spcl_fast.kernels._tape import Results
from spcl_fast.kernels.pair_lse import gradient_parts
from spcl_fast.operands import Gradients, InfoNCETerms, Kept, Pairs

_ROWS = 64
_BLOCK_D = 64
_REDUCED = 1024
_WEIGHT_ROWS = 256


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
    return InfoNCETerms(*results[:-1]), kept  # type: ignore[arg-type]


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
    gradients, _ = replayed(key, [*tensors, dloss], (lse, *kept.present), (), run)
    return Gradients(*gradients)


def _arguments(pairs: Pairs) -> tuple[list[Tensor], tuple[Any, ...]]:
    """Return the tensors, and what else `replayed` must know of."""
    z, refs, tau = pairs
    assert refs is not None
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
