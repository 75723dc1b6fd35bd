"""Row-wise log-sum-exp of pairwise similarities, without storing the (N, N) matrix.

    sim_ij = z_i . z_j / tau,  j != i
    lse_i  = log sum_j exp(sim_ij)

    p_ij   = exp(sim_ij - lse_i)
    h_ij   = dlse_i p_ij + dlse_j p_ji
    dz_i   = sum_j h_ij z_j / tau

Forward visits every unordered pair once: a tile of exp(sim) gives sums for the rows that its
program owns and parts for the rows that it visits, which a second kernel adds in fixed order.
If the norms bound |sim| by 64 nothing is shifted, and h_ij = exp(sim_ij) (u_i + u_j) with
u = dlse exp(-lse); otherwise sums are shifted by their maxima (arXiv:1805.02867). The device
decides: both kernels are launched, and one returns at once.

Backward recomputes sim. By rows: a program keeps dz_i and visits all j. By pairs: a tile of h
serves dz_i and, by atomic additions, dz_j; `adds_atomically` estimates when that is faster. Wide
rows, of more features than a program holds: a panel of h at a time, then a matrix product.
With references r in place of z_j no pair is excluded, and the visited rows are theirs.

Memory: O(N D). Multiply-adds: N^2 D / 2 forward; backward 2 N^2 D by rows and for wide rows,
3 N^2 D / 2 by pairs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spcl_fast.kernels._pair_lse_by_pairs import adds_atomically, gradients_by_pairs
from spcl_fast.kernels._pair_lse_by_rows import gradient_by_rows
from spcl_fast.kernels._pair_lse_forward import fill_lse
from spcl_fast.kernels._pair_lse_pairs import NormedPairs, is_wide
from spcl_fast.kernels._pair_lse_terms import terms_of
from spcl_fast.kernels._pair_lse_wide import gradient_of_wide_rows
from spcl_fast.kernels._tiles import device_of
from spcl_fast.operands import Gradients, Lse, Pairs


def pair_lse_fwd(pairs: Pairs, *, has_backward: bool) -> Lse:
    """Return lse (N,), and lse of the references (M,) if there are any, float32; no cache."""
    z, refs, _ = pairs
    lse = z.new_full((z.shape[0],), -math.inf, dtype=torch.float32)
    lse_refs = lse
    if refs is not None:
        lse_refs = lse.new_full((refs.shape[0],), -math.inf)
    if lse.numel() and lse_refs.numel():
        with device_of(z):
            fill_lse(NormedPairs.of(*pairs), lse, lse_refs)
    return Lse(lse, None if refs is None else lse_refs)


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
        normed = NormedPairs.of(*pairs)
        rows, cols = terms_of(normed, lse.rows, dlse, lse.refs, dlse_refs)
        # Against references a visit serves both sides only if both are needed.
        serves_both = refs is None or (needs_z and needs_refs)
        if serves_both and not is_wide(z) and adds_atomically(z):
            return Gradients(*gradients_by_pairs(normed, rows, cols))
        gradient = gradient_of_wide_rows if is_wide(z) else gradient_by_rows
        dz = gradient(normed, rows, cols) if needs_z else None
        drefs = gradient(normed.swapped(), cols, rows) if needs_refs else None
    return Gradients(dz, drefs)
