"""`pair_lse` and the `positive_pair_loss` of several labels, against the batch and a memory bank.

    lse_i = log ( sum_{a != i} exp(z_i . z_a / tau) + sum_m exp(z_i . b_m / tau) )
    P(i)  = { j != i : y_j = y_i } and { m : y^b_m = y_i }

The batch is one square problem, the bank one rectangle; their results are merged (merge.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from spcl_fast.ops._checks import check_device, check_labels, check_rows
from spcl_fast.ops._impl import Impl
from spcl_fast.ops.composed.merge import merge_lse, merge_pairs
from spcl_fast.ops.pair_lse import pair_lse
from spcl_fast.ops.positive_pair_loss import PositivePairLoss, positive_pair_loss
from spcl_fast.pair_weights import Mode


def bank_rows(
    z: Tensor,
    tau: float | Tensor,
    labels: Sequence[Tensor],
    *,
    bank: Tensor,
    bank_labels: Sequence[Tensor],
    gammas: Sequence[float | Tensor],
    windows: Sequence[float | None],
    mode: Mode,
    impl: Impl = "auto",
) -> tuple[Tensor, list[PositivePairLoss]]:
    """Compute what `contrastive_rows` does, with a bank of further negatives and positives.

    Args:
        z: (N, D), floating.
        tau: temperature, finite and above 0, or a 0-dim floating tensor on the device of `z`.
        labels: (N,) each, as for `positive_pair_loss`.
        bank: (M, D), dtype and device of `z`.
        bank_labels: (M,) each, one a label.
        gammas: pace of each label.
        windows: window of each label, None where equal labels are positive.
        mode: "hard" or "linear", of all labels.
        impl: implementation of the ops.

    Returns:
        lse (N,) and a `PositivePairLoss` a label, differentiable in `z`, `bank` and a tensor `tau`.

    Raises:
        TypeError: a dtype does not fit; floating labels without a window.
        ValueError: a shape, a device, a range, `mode` or `impl` does not fit.
    """
    check_rows("z", z)
    check_bank(z, bank, bank_labels, windows)
    lse = merge_lse([pair_lse(z, tau, impl=impl), pair_lse(z, tau, refs=bank, impl=impl)[0]])
    rows = [
        positive_rows(
            z,
            lse,
            label,
            [(bank, bank_label)],
            tau=tau,
            gamma=gamma,
            window=window,
            mode=mode,
            impl=impl,
        )
        for label, bank_label, gamma, window in zip(
            labels, bank_labels, gammas, windows, strict=True
        )
    ]
    return lse, rows


def check_bank(
    z: Tensor, bank: Tensor, bank_labels: Sequence[Tensor], windows: Sequence[float | None]
) -> None:
    """Raise unless the rows of `z` can be compared with `bank`.

    Args:
        z: (N, D).
        bank: (M, D).
        bank_labels: (M,) each.
        windows: one a label.

    Raises:
        TypeError: a dtype does not fit.
        ValueError: a shape or a device does not fit.
    """
    check_rows("bank", bank)
    check_device("bank", bank, z)
    if bank.dtype != z.dtype:
        raise TypeError(f"bank must have the dtype of z, {z.dtype}, got {bank.dtype}")
    if bank.shape[1:] != z.shape[1:]:
        raise ValueError(f"bank must be (M, {z.shape[-1]}) as z, got {tuple(bank.shape)}")
    for label, window in zip(bank_labels, windows, strict=True):
        check_labels("bank_labels", label, bank.shape[0], z, window)


def positive_rows(
    z: Tensor,
    lse: Tensor,
    labels: Tensor,
    others: Sequence[tuple[Tensor, Tensor]],
    *,
    tau: float | Tensor,
    gamma: float | Tensor,
    window: float | None,
    mode: Mode,
    impl: Impl,
) -> PositivePairLoss:
    """Return `positive_pair_loss` of rows over the other rows and several sets of references.

    Args:
        z: (N, D), floating.
        lse: (N,), over everything that the rows are compared with.
        labels: (N,).
        others: references (M, D) and their labels (M,).
        tau: temperature.
        gamma: pace.
        window: of the label.
        mode: "hard" or "linear".
        impl: implementation of the op.
    """

    def part(refs: Tensor | None, ref_labels: Tensor | None) -> PositivePairLoss:
        return positive_pair_loss(
            z,
            lse,
            labels,
            tau=tau,
            gamma=gamma,
            mode=mode,
            window=window,
            refs=refs,
            ref_labels=ref_labels,
            impl=impl,
        )

    return merge_pairs([part(None, None), *(part(refs, its) for refs, its in others)])
