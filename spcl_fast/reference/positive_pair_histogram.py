"""Dense `positive_pair_histogram`."""

from __future__ import annotations

import torch
from torch import Tensor

from spcl_fast.precision import at_least_float32
from spcl_fast.reference.positive_pair_loss import positive_mask


@torch.no_grad()
def positive_pair_histogram(
    z: Tensor,
    lse: Tensor,
    labels: Tensor,
    *,
    tau: float | Tensor,
    upper: float | Tensor,
    bins: int,
    window: float | None = None,
    refs: Tensor | None = None,
    ref_labels: Tensor | None = None,
) -> Tensor:
    """Return the counts (bins,) int64 of `spcl_fast.ops.positive_pair_histogram`."""
    z = at_least_float32(z)
    others = z if refs is None else at_least_float32(refs)
    pair_loss = lse.to(z.dtype)[:, None] - z @ others.T / tau  # (N, M)
    positive = positive_mask(labels, ref_labels, window)
    bin_of_pair = (pair_loss / upper * bins).clamp(0, bins - 1).nan_to_num().long()
    counts = torch.zeros(bins, dtype=torch.int64, device=z.device)
    return counts.scatter_add_(0, bin_of_pair.flatten(), positive.flatten().long())
