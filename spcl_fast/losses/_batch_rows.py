"""The rows that a loss is made of: of this process or of a group, with a memory bank or without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from spcl_fast import distributed
from spcl_fast.distributed import BatchRows
from spcl_fast.ops import Impl, contrastive_rows
from spcl_fast.ops.composed.bank_rows import bank_rows
from spcl_fast.pair_weights import Mode

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def batch_rows(
    z: Tensor,
    tau: float | Tensor,
    labels: Sequence[Tensor],
    *,
    gammas: Sequence[float | Tensor],
    windows: Sequence[float | None],
    mode: Mode,
    bank: Tensor | None,
    bank_labels: Sequence[Tensor],
    impl: Impl,
    group: ProcessGroup | None,
) -> BatchRows:
    """Return the losses of the rows of the whole batch under every label.

    Args:
        z: (N, D), floating; the rows of this rank.
        tau: temperature.
        labels: (N,) each.
        gammas: pace of each label.
        windows: window of each label.
        mode: "hard" or "linear".
        bank: (M, D), the same on every rank.
        bank_labels: (M,) each, empty without a bank.
        impl: implementation of the ops.
        group: the ranks, or None for this process alone.

    Raises:
        TypeError: a dtype does not fit.
        ValueError: a shape, a device or a range does not fit; the ranks differ.
    """
    if distributed.num_ranks(group) > 1:
        return distributed.contrastive_rows(
            z,
            tau,
            labels,
            gammas=gammas,
            windows=windows,
            mode=mode,
            group=group,
            bank=bank,
            bank_labels=bank_labels,
            impl=impl,
        )
    if bank is None:
        lse, pairs = contrastive_rows(
            z, tau, labels, gammas=gammas, windows=windows, mode=mode, impl=impl
        )
    else:
        lse, pairs = bank_rows(
            z,
            tau,
            labels,
            bank=bank,
            bank_labels=bank_labels,
            gammas=gammas,
            windows=windows,
            mode=mode,
            impl=impl,
        )
    return BatchRows(z.detach(), lse.detach(), pairs)
