"""`pair_lse` and the `positive_pair_loss` of several labels, against the batch and a memory bank.

    lse_i = log ( sum_{a != i} exp(z_i . z_a / tau) + sum_m exp(z_i . b_m / tau) )
    P(i)  = { j != i : y_j = y_i } and { m : y^b_m = y_i }

The batch is one square problem, the bank one rectangle; their results are merged (merge.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from spcl_fast.operands import Label, PositivePairLoss
from spcl_fast.ops._checks import check_device, check_labels, check_rows
from spcl_fast.ops._impl import Impl, resolve_for, rows_for
from spcl_fast.ops.composed.merge import merge_lse, merge_pairs
from spcl_fast.ops.pair_lse import pair_lse
from spcl_fast.ops.positive_pair_loss import positive_pair_loss
from spcl_fast.pair_weights import Mode


class References(NamedTuple):
    """Further rows to compare with, under one label."""

    rows: Tensor
    """(M, D)."""
    values: Tensor
    """(M,)."""


def bank_rows(
    z: Tensor,
    tau: float | Tensor,
    labels: Sequence[Label],
    *,
    bank: Tensor,
    mode: Mode,
    impl: Impl = "auto",
) -> tuple[Tensor, list[PositivePairLoss]]:
    """Compute what `contrastive_rows` does, with a bank of further negatives and positives.

    Args:
        z: (N, D), floating.
        tau: temperature, finite and above 0, or a 0-dim floating tensor on the device of `z`.
        labels: each with (N,) values, and (M,) values of the bank.
        bank: (M, D), dtype and device of `z`.
        mode: "hard" or "linear", of all labels.
        impl: implementation of the ops.

    Returns:
        lse (N,) and a `PositivePairLoss` per label, differentiable in `z`, `bank` and a tensor
        `tau`.

    Raises:
        TypeError: a dtype does not fit; floating labels without a window.
        ValueError: a shape, a device, a range, `mode` or `impl` does not fit.
    """
    check_rows("z", z)
    check_bank(z, bank, labels)
    name = resolve_for(impl, z)
    # once, so that the gradients of all parts add up in float32
    z, bank = (rows_for(name, x, None)[0] for x in (z, bank))
    lse = merge_lse([pair_lse(z, tau, impl=impl), pair_lse(z, tau, refs=bank, impl=impl)[0]])
    rows = [
        positive_rows(z, tau, lse, label, [References(bank, bank_values)], mode=mode, impl=impl)
        for label in labels
        if (bank_values := label.ref_values) is not None
    ]
    return lse, rows


def check_bank(z: Tensor, bank: Tensor, labels: Sequence[Label]) -> None:
    """Raise unless the rows of `z` can be compared with `bank`.

    Args:
        z: (N, D).
        bank: (M, D).
        labels: each with (M,) values of the bank.

    Raises:
        TypeError: a dtype does not fit.
        ValueError: a shape or a device does not fit; a label has no values of the bank.
    """
    check_rows("bank", bank)
    check_device("bank", bank, z)
    if bank.dtype != z.dtype:
        raise TypeError(f"bank must have the dtype of z, {z.dtype}, got {bank.dtype}")
    if bank.shape[1:] != z.shape[1:]:
        raise ValueError(f"bank must be (M, {z.shape[-1]}) as z, got {tuple(bank.shape)}")
    for label in labels:
        if label.ref_values is None:
            raise ValueError("ref_values must be given with a bank, got None")
        check_labels("bank_labels", label.ref_values, bank.shape[0], z, label.window)


def positive_rows(
    z: Tensor,
    tau: float | Tensor,
    lse: Tensor,
    label: Label,
    others: Sequence[References],
    *,
    mode: Mode,
    impl: Impl,
) -> PositivePairLoss:
    """Return `positive_pair_loss` of rows over the other rows and several sets of references.

    Args:
        z: (N, D), floating.
        tau: temperature.
        lse: (N,), over everything that the rows are compared with.
        label: with (N,) values; those of references are in `others`.
        others: sets of references.
        mode: "hard" or "linear".
        impl: implementation of the op.
    """

    def part(refs: Tensor | None, ref_labels: Tensor | None) -> PositivePairLoss:
        return positive_pair_loss(
            z,
            lse,
            label.values,
            tau=tau,
            gamma=label.gamma,
            mode=mode,
            window=label.window,
            refs=refs,
            ref_labels=ref_labels,
            impl=impl,
        )

    return merge_pairs([part(None, None), *(part(*references) for references in others)])
