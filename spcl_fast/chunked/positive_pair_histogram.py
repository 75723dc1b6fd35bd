"""`positive_pair_histogram` by panels."""

from __future__ import annotations

import torch
from torch import Tensor

from spcl_fast.chunked._positives import SortedLabels
from spcl_fast.operands import Label, Pairs


def positive_pair_histogram(
    pairs: Pairs,
    lse: Tensor,  # (N,)
    label: Label,
    *,
    upper: float | Tensor,
    bins: int,
) -> Tensor:
    """Return the counts (bins,) int64 of `spcl_fast.ops.positive_pair_histogram`."""
    z, refs, tau = pairs
    order = SortedLabels(label.values, label.ref_values, label.window)
    rows = z[order.row_order]
    cols = rows if refs is None else refs[order.col_order]
    rows, lse = rows / tau, lse[order.row_order]
    counts = torch.zeros(bins, dtype=torch.int64, device=z.device)

    def add(pair_loss: Tensor, positive: Tensor) -> None:
        # NaN cannot be an index: the loss shows it, and counting goes on
        bin_of_pair = pair_loss.div_(upper).mul_(bins).clamp_(0, bins - 1).nan_to_num_().long()
        counts.scatter_add_(0, bin_of_pair.flatten(), positive.flatten().long())

    for r0, r1, c0, c1, first_off_diagonal, positive in order.panels():
        sim = rows[r0:r1] @ cols[c0:c1].T
        add(lse[r0:r1, None] - sim, positive)
        if order.is_square:
            pair_loss = lse[c0 + first_off_diagonal : c1] - sim[:, first_off_diagonal:]
            add(pair_loss, positive[:, first_off_diagonal:])
    return counts
