"""`pair_lse` by panels; the mathematics is in spcl_fast/ops/pair_lse.py.

Forward computes each unordered pair once: the rows of a panel and its columns are reduced from the
same tile and merged across panels by logaddexp, so every temperature and norm is safe. Backward
recomputes the tile, and one product each way spreads its gradient.

Memory: O(N D) and two panels. Multiply-adds: N^2 D / 2 forward, 3 N^2 D / 2 backward.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spcl_fast.chunked._panels import Workspace, panel_elements, row_panels, triangle_panels
from spcl_fast.operands import Gradients, Lse, Pairs
from spcl_fast.precision import accumulator_dtype


def pair_lse_fwd(pairs: Pairs, *, has_backward: bool) -> Lse:
    """Return lse (N,), and lse of the references (M,) where there are any; nothing is cached."""
    z, refs, tau = pairs
    others = z if refs is None else refs
    accumulator = accumulator_dtype(z.device)
    row_lse = torch.full((z.shape[0],), -math.inf, dtype=accumulator, device=z.device)
    col_lse = row_lse
    if refs is not None:
        col_lse = torch.full((refs.shape[0],), -math.inf, dtype=accumulator, device=z.device)
    scaled, cols = z / tau, others.T
    sims, exps = Workspace(z), Workspace(z)
    for r0, r1, c0 in _panels(z, refs):
        sim = sims.panel(r1 - r0, others.shape[0] - c0)
        torch.mm(scaled[r0:r1], cols[:, c0:], out=sim)
        first_off_diagonal = 0
        if refs is None:
            sim.fill_diagonal_(-math.inf)
            first_off_diagonal = r1 - r0
        _merge(row_lse[r0:r1], _logsumexp(sim, 1, exps.panel(*sim.shape)))
        # The rows of the diagonal block have already seen both orders of a pair.
        sim = sim[:, first_off_diagonal:]
        _merge(col_lse[c0 + first_off_diagonal :], _logsumexp(sim, 0, sim))
    if refs is None:
        return Lse(row_lse.to(z.dtype), None)
    return Lse(row_lse.to(z.dtype), col_lse.to(z.dtype))


def pair_lse_bwd(
    pairs: Pairs,
    lse: Lse,
    dlse: Tensor,  # (N,)
    dlse_refs: Tensor | None,  # (M,)
    *,
    needs_z: bool,
    needs_refs: bool,
) -> Gradients:
    """Return dz (N, D) and drefs (M, D), None where not needed."""
    z, refs, tau = pairs
    others = z if refs is None else refs
    col_lse = lse.rows if lse.refs is None else lse.refs
    dlse = dlse / tau
    dcol = dlse if dlse_refs is None else dlse_refs / tau
    dz = torch.zeros_like(z) if needs_z else None
    dothers = dz if refs is None else torch.zeros_like(refs) if needs_refs else None
    scaled, cols = z / tau, others.T
    sims, exps = Workspace(z), Workspace(z)
    for r0, r1, c0 in _panels(z, refs):
        sim = sims.panel(r1 - r0, others.shape[0] - c0)
        torch.mm(scaled[r0:r1], cols[:, c0:], out=sim)
        h = torch.sub(sim, lse.rows[r0:r1, None], out=exps.panel(*sim.shape))
        # p <= 1, but s_ij is not rounded as s_ji in lse_j is: that far apart long rows can be
        h.clamp_max_(0).exp_().mul_(dlse[r0:r1, None])
        h.add_(sim.sub_(col_lse[c0:]).clamp_max_(0).exp_().mul_(dcol[c0:]))
        first_off_diagonal = 0
        if refs is None:
            h.fill_diagonal_(0)
            first_off_diagonal = r1 - r0
        if dz is not None:
            dz[r0:r1].addmm_(h, others[c0:])
        if dothers is not None:
            dothers[c0 + first_off_diagonal :].addmm_(h[:, first_off_diagonal:].T, z[r0:r1])
    return Gradients(dz, None if refs is None else dothers)


def _panels(z: Tensor, refs: Tensor | None) -> list[tuple[int, int, int]]:
    """Return (r0, r1, c0) of every panel: rows [r0, r1) against the columns from c0 on."""
    elements = panel_elements(z.device)
    if refs is None:
        return [(r0, r1, r0) for r0, r1 in triangle_panels(z.shape[0], elements)]
    if refs.shape[0] == 0:
        return []
    return [(r0, r1, 0) for r0, r1 in row_panels(z.shape[0], refs.shape[0], elements)]


def _logsumexp(sim: Tensor, dim: int, out: Tensor) -> Tensor:
    """Return log-sum-exp over `dim`, with `out` (which may be `sim`) as scratch memory."""
    if sim.numel() == 0:
        return sim.new_full((sim.shape[1 - dim],), -math.inf)
    # A row can hold nothing but the masked diagonal: keep -inf - -inf from becoming NaN.
    shift = sim.amax(dim, keepdim=True).clamp_min_(torch.finfo(sim.dtype).min)
    total = torch.sub(sim, shift, out=out).exp_().sum(dim)
    return total.log_().add_(shift.squeeze(dim))


def _merge(lse: Tensor, part: Tensor) -> None:
    torch.logaddexp(lse, part.to(lse.dtype), out=lse)
