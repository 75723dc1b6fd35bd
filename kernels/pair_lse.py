"""Row-wise log-sum-exp of pairwise similarities, without storing the (N, N) matrix.

    sim_ij = z_i . z_j / tau,  j != i
    lse_i  = log sum_j exp(sim_ij)

    p_ij   = exp(sim_ij - lse_i)
    h_ij   = dlse_i p_ij + dlse_j p_ji
    dz_i   = sum_j h_ij z_j / tau

Forward visits every unordered pair once: a tile of exp(sim) gives sums for the rows that its
program owns and parts for the rows that it visits, which a second kernel adds in fixed order.
If the norms bound |sim| by 64 nothing is shifted, and h_ij = exp(sim_ij) (u_i + u_j) with
u = dlse exp(-lse); otherwise sums are shifted by their maxima (arXiv:1805.02867). Every program
decides by the norms.

Backward recomputes sim: a program keeps dz_i and visits all j. Wide rows, of more features than a
program holds: a panel of h at a time, then a matrix product. With references r in place of z_j no
pair is excluded, and the visited rows are theirs.

Memory: O(N D). Multiply-adds: N^2 D / 2 forward, 2 N^2 D backward; 3 times that for rows of two
planes, 6 times for three (kernels/_planes.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spcl_fast.kernels._pair_sums import fill_lse
from spcl_fast.kernels._row_gradient import row_gradient_parts
from spcl_fast.kernels._row_weights import RowWeights, row_weights
from spcl_fast.kernels._similarities import PlanePairs, device_of
from spcl_fast.kernels._wide_gradient import wide_gradient
from spcl_fast.operands import Gradients, Lse, Pairs


def pair_lse_fwd(pairs: Pairs, *, has_backward: bool) -> Lse:
    """Return lse (N,), and lse of the references (M,) if there are any, float32; no cache."""
    z, refs, _ = pairs
    others = z if refs is None else refs
    if z.shape[0] == 0 or others.shape[0] == 0:
        nothing = z.new_full((z.shape[0] + others.shape[0],), -math.inf, dtype=torch.float32)
        lse = nothing[: z.shape[0]]
        return Lse(lse, None if refs is None else nothing[z.shape[0] :])
    lse = torch.empty(z.shape[0], dtype=torch.float32, device=z.device)
    lse_refs = None if refs is None else lse.new_empty(refs.shape[0])
    with device_of(z):
        fill_lse(PlanePairs.of(*pairs), lse, lse_refs)
    return Lse(lse, lse_refs)


def pair_lse_bwd(
    pairs: Pairs,
    lse: Lse,
    dlse: Tensor,  # (N,) float32
    dlse_refs: Tensor | None,  # (M,) float32
    *,
    needs_z: bool,
    needs_refs: bool,
) -> Gradients:
    """Return dz (N, D) and drefs (M, D), contiguous, as `z`, None where not needed."""
    z, refs, _ = pairs
    needs_refs = needs_refs and refs is not None
    if not (needs_z or needs_refs):
        return Gradients(None, None)
    others = z if refs is None else refs
    if z.numel() == 0 or others.numel() == 0:
        dz = z.new_zeros(z.shape) if needs_z else None
        return Gradients(dz, z.new_zeros(others.shape) if needs_refs else None)
    with device_of(z):
        planes = PlanePairs.of(*pairs)
        weights = row_weights(planes, lse.rows, dlse, lse.refs, dlse_refs)
        dz = _sum_of(gradient_parts(planes, weights, z.dtype), z.dtype) if needs_z else None
        drefs = None
        if needs_refs:
            parts = gradient_parts(planes.swapped(), weights.swapped(), z.dtype)
            drefs = _sum_of(parts, z.dtype)
    return Gradients(dz, drefs)


def gradient_parts(pairs: PlanePairs, weights: RowWeights, dtype: torch.dtype) -> Tensor:
    """Return parts whose sum is dz, (parts, N, D), a single one in `dtype`, several in float32."""
    if pairs.is_wide:
        return wide_gradient(pairs, weights, dtype)
    return row_gradient_parts(pairs, weights, dtype)


def _sum_of(parts: Tensor, dtype: torch.dtype) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0).to(dtype)
