"""`positive_pair_loss` by panels; the mathematics is in spcl_fast/ops/positive_pair_loss.py.

Rows are sorted by label once, so the positives of a row are one interval of columns, and a pair's
tile serves both of its rows. With gamma = inf and no window class sums replace the pairs.

Memory: O(N D) and a few panels. Multiply-adds: 2 x (share of positive pairs) x N^2 D on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spcl_fast.chunked._panels import Workspace
from spcl_fast.chunked._positives import SortedLabels
from spcl_fast.class_sums import Classes, class_sum_gradients, class_sum_loss
from spcl_fast.operands import Gradients, Label, Pairs, PositivePairLoss
from spcl_fast.pair_weights import Mode, has_unit_weights, pair_weights
from spcl_fast.precision import accumulator_dtype


def positive_pair_loss_fwd(
    pairs: Pairs,
    lse: Tensor,  # (N,)
    label: Label,
    mode: Mode,
) -> PositivePairLoss:
    """Return loss, weight_sum and num_pos, (N,) each."""
    z, refs, tau = pairs
    if has_unit_weights(label.gamma, label.window):
        classes = Classes(label.values, label.ref_values)
        return PositivePairLoss(*class_sum_loss(z, lse, refs, classes, tau))
    order = SortedLabels(label.values, label.ref_values, label.window)
    rows, cols = _sorted_operands(z, refs, order)
    scaled, lse = rows / tau, lse[order.row_order]
    accumulator = accumulator_dtype(z.device)
    loss_sum, weight_sum = torch.zeros(2, z.shape[0], dtype=accumulator, device=z.device)
    num_pos = torch.zeros_like(order.row_order)
    sims = Workspace(z)

    def add(pair_loss: Tensor, positive: Tensor, start: int, stop: int, dim: int) -> None:
        weight = pair_weights(pair_loss, label.gamma, mode).mul_(positive)
        weight_sum[start:stop] += weight.sum(dim)
        loss_sum[start:stop] += weight.mul_(pair_loss).sum(dim)
        num_pos[start:stop] += positive.sum(dim)

    for r0, r1, c0, c1, first_off_diagonal, positive in order.panels():
        sim = sims.panel(r1 - r0, c1 - c0)
        torch.mm(scaled[r0:r1], cols[c0:c1].T, out=sim)
        add(lse[r0:r1, None] - sim, positive, r0, r1, 1)
        if order.is_square:
            pair_loss = lse[c0 + first_off_diagonal : c1] - sim[:, first_off_diagonal:]
            add(pair_loss, positive[:, first_off_diagonal:], c0 + first_off_diagonal, c1, 0)

    loss = (loss_sum / num_pos.clamp_min(1)).to(z.dtype)
    back = order.row_order
    sorted_columns = (loss, weight_sum.to(z.dtype), num_pos)
    return PositivePairLoss(*(_unsort(x, back) for x in sorted_columns))


def positive_pair_loss_bwd(
    c: Tensor,  # (N,) dloss_i / |P(i)|
    pairs: Pairs,
    lse: Tensor,  # (N,)
    label: Label,
    mode: Mode,
    *,
    needs_z: bool,
    needs_refs: bool,
) -> Gradients:
    """Return dz (N, D) and drefs (M, D) with lse held fixed, None where not needed."""
    z, refs, tau = pairs
    if has_unit_weights(label.gamma, label.window):
        classes = Classes(label.values, label.ref_values)
        return Gradients(
            *class_sum_gradients(c, z, refs, classes, tau, needs_z=needs_z, needs_refs=needs_refs)
        )
    order = SortedLabels(label.values, label.ref_values, label.window)
    rows, cols = _sorted_operands(z, refs, order)
    scaled = rows / tau
    lse, c = lse[order.row_order], (c / tau).neg_()[order.row_order]
    drows = torch.zeros_like(rows) if needs_z else None
    dcols = drows if refs is None else torch.zeros_like(cols) if needs_refs else None
    sims = Workspace(z)
    for r0, r1, c0, c1, first_off_diagonal, positive in order.panels():
        sim = sims.panel(r1 - r0, c1 - c0)
        torch.mm(scaled[r0:r1], cols[c0:c1].T, out=sim)
        h = pair_weights(lse[r0:r1, None] - sim, label.gamma, mode).mul_(c[r0:r1, None])
        if order.is_square:
            h.add_(pair_weights(lse[c0:c1] - sim, label.gamma, mode).mul_(c[c0:c1]))
        h.mul_(positive)
        if drows is not None:
            drows[r0:r1].addmm_(h, cols[c0:c1])
        if dcols is not None:
            dcols[c0 + first_off_diagonal : c1].addmm_(h[:, first_off_diagonal:].T, rows[r0:r1])
    dz = None if drows is None else _unsort(drows, order.row_order)
    drefs = None if refs is None or dcols is None else _unsort(dcols, order.col_order)
    return Gradients(dz, drefs)


def _sorted_operands(z: Tensor, refs: Tensor | None, order: SortedLabels) -> tuple[Tensor, Tensor]:
    """Return the features of rows and columns in sorted order."""
    rows = z[order.row_order]
    return rows, rows if refs is None else refs[order.col_order]


def _unsort(x: Tensor, order: Tensor) -> Tensor:
    out = torch.empty_like(x)
    out[order] = x
    return out
