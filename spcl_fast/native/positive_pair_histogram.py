"""`positive_pair_histogram` in CUDA (csrc/cuda/positive_pair_histogram.cuh).

It runs once an epoch at most, over positive pairs alone, so on a CPU a kernel of its own would not
pay: the panels of `chunked` count there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spcl_fast import chunked
from spcl_fast.native._scalar import as_tensor

torch.library.define(
    "spcl_fast::positive_pair_histogram_native",
    "(Tensor z, Tensor lse, Tensor labels, Tensor? refs, Tensor? ref_labels, Tensor tau, "
    "Tensor upper, int bins, float? window) -> Tensor",
)


def _fake_positive_pair_histogram(
    z: Tensor,
    lse: Tensor,
    labels: Tensor,
    refs: Tensor | None,
    ref_labels: Tensor | None,
    tau: Tensor,
    upper: Tensor,
    bins: int,
    window: float | None,
) -> Tensor:
    return z.new_empty(bins, dtype=torch.int64)


torch.library.register_fake(
    "spcl_fast::positive_pair_histogram_native", _fake_positive_pair_histogram
)


def positive_pair_histogram(
    z: Tensor,  # (N, D) float32, half types on a GPU too
    lse: Tensor,  # (N,)
    labels: Tensor,  # (N,)
    *,
    tau: float | Tensor,
    upper: float | Tensor,
    bins: int,
    window: float | None = None,
    refs: Tensor | None = None,  # (M, D)
    ref_labels: Tensor | None = None,  # (M,)
) -> Tensor:
    """Return the counts (bins,) int64 of `spcl_fast.ops.positive_pair_histogram`."""
    if z.device.type == "cpu":
        return chunked.positive_pair_histogram(
            z,
            lse,
            labels,
            tau=tau,
            upper=upper,
            bins=bins,
            window=window,
            refs=refs,
            ref_labels=ref_labels,
        )
    counts: Tensor = torch.ops.spcl_fast.positive_pair_histogram_native(
        z, lse, labels, refs, ref_labels, as_tensor(tau), as_tensor(upper), bins, window
    )
    return counts
