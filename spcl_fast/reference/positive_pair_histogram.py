"""Dense `positive_pair_histogram`."""

from __future__ import annotations

import torch
from torch import Tensor

from spcl_fast.operands import Label, Pairs
from spcl_fast.reference.positive_pair_loss import pair_losses, positive_mask


@torch.no_grad()
def positive_pair_histogram(
    pairs: Pairs,
    lse: Tensor,  # (N,)
    label: Label,
    *,
    upper: float | Tensor,
    bins: int,
) -> Tensor:
    """Return the counts (bins,) int64 of `spcl_fast.ops.positive_pair_histogram`."""
    pair_loss = pair_losses(pairs, lse)
    positive = positive_mask(label.values, label.ref_values, label.window)
    bin_of_pair = (pair_loss / upper * bins).clamp(0, bins - 1).nan_to_num().long()
    counts = torch.zeros(bins, dtype=torch.int64, device=lse.device)
    return counts.scatter_add_(0, bin_of_pair.flatten(), positive.flatten().long())
