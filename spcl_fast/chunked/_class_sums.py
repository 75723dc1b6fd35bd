"""Positive pairs of weight 1 without anything quadratic: sums over classes.

    sum_{j in P(i)} z_i . z_j = z_i . (C_{y_i} - z_i),   C_k = sum_{j: y_j = k} z_j

Rectangular: sum_j z_i . r_j = z_i . C_{y_i} with the sums of the references.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spcl_fast.chunked._panels import is_host
from spcl_fast.precision import accumulator_dtype


class Classes:
    """Dense class ids shared by rows and references."""

    def __init__(self, labels: Tensor, ref_labels: Tensor | None) -> None:
        num_rows = labels.shape[0]
        self.is_square = ref_labels is None
        labels = labels.long()
        joint = labels if ref_labels is None else torch.cat([labels, ref_labels.long()])
        in_order, order = torch.sort(joint, stable=True)
        is_new = torch.ones_like(in_order, dtype=torch.bool)
        is_new[1:] = in_order[1:] != in_order[:-1]
        ids = torch.empty_like(order)
        ids[order] = is_new.cumsum(0) - 1
        # The number of classes is on the device: only a CPU can read it for free.
        self._num_classes = int(is_new.sum()) if is_host(labels.device) else joint.shape[0]
        self._known = joint >= 0
        self.ids, self.known = ids[:num_rows], self._known[:num_rows]
        start = 0 if ref_labels is None else num_rows
        self.ref_ids, self.ref_known = ids[start:], self._known[start:]

    def num_pos(self) -> Tensor:
        """Return the number of positives of every row, (N,) int64."""
        counts = torch.zeros(self._num_classes, dtype=torch.int64, device=self.ids.device)
        counts.index_add_(0, self.ref_ids, self.ref_known.long())
        positives = counts[self.ids] - int(self.is_square)
        return torch.where(self.known, positives, 0)

    def row_sums(self, x: Tensor) -> Tensor:
        """Return sum_{i: y_i = y_j} x_i for every reference j, (M, ...), 0 where unknown."""
        return self._sums(x, self.ids, self.known, self.ref_ids, self.ref_known)

    def ref_sums(self, x: Tensor) -> Tensor:
        """Return sum_{j: y_j = y_i} x_j for every row i, (N, ...), 0 where unknown."""
        return self._sums(x, self.ref_ids, self.ref_known, self.ids, self.known)

    def _sums(
        self, x: Tensor, ids: Tensor, known: Tensor, out_ids: Tensor, out_known: Tensor
    ) -> Tensor:
        # A class can hold most rows: one running sum of them in float32 would lose digits.
        wide = x.to(accumulator_dtype(x.device)) * known[:, None]
        sums = wide.new_zeros(self._num_classes, x.shape[1]).index_add_(0, ids, wide)
        return sums.to(x.dtype)[out_ids].mul_(out_known[:, None])


def class_sum_loss(
    z: Tensor, lse: Tensor, refs: Tensor | None, classes: Classes, tau: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, weight_sum, num_pos, (N,) each, for weights of 1."""
    num_pos = classes.num_pos()
    sums = classes.ref_sums(z if refs is None else refs)
    if refs is None:
        sums = sums.sub_(z)
    mean_sim = (z * sums).sum(1) / tau / num_pos.clamp_min(1)
    loss = torch.where(num_pos > 0, lse - mean_sim, 0)
    return loss, num_pos.to(z.dtype), num_pos


def class_sum_gradients(
    c: Tensor,  # (N,) dloss_i / |P(i)|
    z: Tensor,
    refs: Tensor | None,
    classes: Classes,
    tau: float | Tensor,
    *,
    needs_z: bool,
    needs_refs: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return dz (N, D) and drefs (M, D), None where not needed."""
    c = (c / tau).neg_()[:, None]
    if refs is None:
        both = c * classes.ref_sums(z) + classes.ref_sums(c * z) - 2 * c * z
        return both.mul_(classes.known[:, None]), None
    dz = c * classes.ref_sums(refs) if needs_z else None
    drefs = classes.row_sums(c * z) if needs_refs else None
    return dz, drefs
