"""`positive_pair_histogram` in CUDA (csrc/cuda/positive_pair_histogram.cuh).

It runs once an epoch at most, over positive pairs alone, so on a CPU a kernel of its own would not
pay: the panels of `chunked` count there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spcl_fast import chunked
from spcl_fast.native._scalar import as_tensor
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
    if z.device.type == "cpu":
        return chunked.positive_pair_histogram(pairs, lse, label, upper=upper, bins=bins)
    counts: Tensor = torch.ops.spcl_fast.positive_pair_histogram_native(
        z,
        lse,
        label.values,
        refs,
        label.ref_values,
        as_tensor(tau),
        as_tensor(upper),
        bins,
        label.window,
    )
    return counts
