"""Histogram of the losses of positive pairs, from which a quantile pace is read."""

from __future__ import annotations

from numbers import Integral

import torch
from torch import Tensor

from spcl_fast import reference
from spcl_fast.operands import Label, Pairs
from spcl_fast.ops._checks import check_pairs, positive_scalar
from spcl_fast.ops._contract import define_native, implemented
from spcl_fast.ops._impl import Impl, resolve_for, rows_for
from spcl_fast.precision import dtype_of_results, no_autocast


@torch.no_grad()
def positive_pair_histogram(
    z: Tensor,
    lse: Tensor,
    labels: Tensor,
    *,
    tau: float | Tensor,
    upper: float | Tensor,
    bins: int = 4096,
    window: float | None = None,
    refs: Tensor | None = None,
    ref_labels: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Count the losses lse_i - z_i . z_j / tau of all positive pairs in equal bins of [0, upper].

    Not differentiable; nothing is copied from the device to the host.

    Args:
        z: (N, D), floating.
        lse: (N,), float32 or float64, from `pair_lse`.
        labels: (N,), as for `positive_pair_loss`.
        tau: temperature, finite and above 0, or a 0-dim floating tensor on the device of `z`.
        upper: end of the last bin, finite and above 0, or a 0-dim floating tensor. Losses above it
            are counted in the last bin; NaN, and losses that rounding makes negative, in the first.
        bins: number of bins, at least 1.
        window: as for `positive_pair_loss`.
        refs: (M, D), as for `positive_pair_loss`.
        ref_labels: (M,), with `refs`.
        impl: "auto", "reference", "chunked", "native" or "triton".

    Returns:
        (bins,) int64 counts.

    Raises:
        TypeError: a dtype does not fit; floating labels without a window; `bins` is not an int.
        ValueError: a shape, a device, a range or `impl` does not fit.
    """
    check_pairs(z, lse, labels, window=window, refs=refs, ref_labels=ref_labels)
    tau = positive_scalar("tau", tau, z, finite=True)
    upper = positive_scalar("upper", upper, z, finite=True)
    if isinstance(bins, bool) or not isinstance(bins, Integral):
        raise TypeError(f"bins must be an int, got {type(bins).__name__}")
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    name = resolve_for(impl, z)
    z, refs = rows_for(name, z, refs)
    pairs, label = Pairs(z, refs, tau), Label(labels, window=window, ref_values=ref_labels)
    lse = lse.to(dtype_of_results(z))
    with no_autocast(z.device):
        if name == "reference":
            return reference.positive_pair_histogram(pairs, lse, label, upper=upper, bins=bins)
        return _positive_pair_histogram(name, pairs, lse, label, upper=upper, bins=bins)


@implemented
def _positive_pair_histogram(
    pairs: Pairs, lse: Tensor, label: Label, *, upper: float | Tensor, bins: int
) -> Tensor:
    """Return the counts."""
    return _empty(pairs.z, bins)


def _empty(z: Tensor, bins: int) -> Tensor:
    return z.new_empty(bins, dtype=torch.int64)


define_native(
    "positive_pair_histogram_native(Tensor z, Tensor lse, Tensor labels, Tensor? refs,"
    " Tensor? ref_labels, Tensor tau, Tensor upper, int bins, float? window) -> Tensor",
    _empty,
)
