"""Positive pairs of weight 1 in linear time: sums over classes, on every device.

    sum_{j in P(i)} z_i . z_j = z_i . (C_{y_i} - z_i),   C_k = sum_{j: y_j = k} z_j

Rectangular: sum_j z_i . r_j = z_i . C_{y_i} with the sums of the references. Sums are accumulated
in float64; on a GPU they are added atomically unless torch.use_deterministic_algorithms is on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spcl_fast.devices import is_host
from spcl_fast.precision import accumulator_dtype, at_least_float32


class Classes:
    """Dense class ids shared by rows and references."""

    def __init__(self, labels: Tensor, ref_labels: Tensor | None) -> None:
        self.is_square = ref_labels is None
        labels = labels.long()
        if ref_labels is None:
            self.ids = self.ref_ids = self._dense_ids(labels)
            self.known = self.ref_known = labels >= 0
        else:
            ref_labels = ref_labels.long()
            ids = self._dense_ids(torch.cat([labels, ref_labels]))
            self.ids, self.ref_ids = torch.split(ids, [labels.shape[0], ref_labels.shape[0]])
            self.known, self.ref_known = labels >= 0, ref_labels >= 0

    def _dense_ids(self, labels: Tensor) -> Tensor:
        if is_host(labels.device):
            values: Tensor
            ids: Tensor
            values, ids = torch.unique(labels, return_inverse=True)
            self._num_classes = values.shape[0]
            return ids
        # How many classes there are is on the device: the first place of a class is its id.
        self._num_classes = labels.shape[0]
        return torch.searchsorted(torch.sort(labels).values, labels)

    def num_pos(self) -> Tensor:
        """Return the number of positives of every row, (N,) int64."""
        counts = torch.zeros(self._num_classes, dtype=torch.int64, device=self.ids.device)
        counts.index_add_(0, self.ref_ids, self.ref_known.long())
        positives = counts.index_select(0, self.ids) - int(self.is_square)
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
        dtype = accumulator_dtype(x.device)
        terms = x.to(dtype) * known.unsqueeze(1)
        sums = terms.new_zeros(self._num_classes, x.shape[1]).index_add_(0, ids, terms)
        return sums.to(x.dtype).index_select(0, out_ids).mul_(out_known.unsqueeze(1))


def class_sum_loss(
    z: Tensor,  # (N, D)
    lse: Tensor,  # (N,)
    refs: Tensor | None,  # (M, D)
    classes: Classes,
    tau: float | Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, weight_sum, num_pos, (N,) each, for weights of 1."""
    num_pos = classes.num_pos()
    z = at_least_float32(z)
    sums = classes.ref_sums(z if refs is None else at_least_float32(refs))
    if refs is None:
        sums = sums.sub_(z)
    mean_sim = (z * sums).sum(1) / tau / num_pos.clamp_min(1)
    loss = torch.where(num_pos > 0, lse - mean_sim, 0)
    return loss, num_pos.to(z.dtype), num_pos


def class_sum_gradients(
    c: Tensor,  # (N,) dloss_i / |P(i)|
    z: Tensor,  # (N, D)
    refs: Tensor | None,  # (M, D)
    classes: Classes,
    tau: float | Tensor,
    *,
    needs_z: bool,
    needs_refs: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return dz (N, D) and drefs (M, D), as `z`, None where not needed."""
    dtype, z = z.dtype, at_least_float32(z)
    c = (c / tau).neg_().unsqueeze(1)
    if refs is None:
        both = c * classes.ref_sums(z) + classes.ref_sums(c * z) - 2 * c * z
        return both.mul_(classes.known.unsqueeze(1)).to(dtype), None
    dz = (c * classes.ref_sums(at_least_float32(refs))).to(dtype) if needs_z else None
    drefs = classes.row_sums(c * z).to(dtype) if needs_refs else None
    return dz, drefs
