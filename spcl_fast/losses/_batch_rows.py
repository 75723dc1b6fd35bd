"""The rows of a loss: of this process or of a group, with or without a memory bank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from spcl_fast import distributed
from spcl_fast.distributed import BatchRows
from spcl_fast.ops import Impl, Label, contrastive_rows
from spcl_fast.ops.composed.bank_rows import bank_rows
from spcl_fast.pair_weights import Mode

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def batch_rows(
    z: Tensor,
    tau: float | Tensor,
    labels: Sequence[Label],
    *,
    mode: Mode,
    bank: Tensor | None,
    impl: Impl,
    group: ProcessGroup | None,
) -> BatchRows:
    """Return the losses of the rows of the whole batch under every label.

    Args:
        z: (N, D), floating; the rows of this rank.
        tau: temperature.
        labels: each with (N,) values, and (M,) values of a bank.
        mode: "hard" or "linear".
        bank: (M, D), the same on every rank.
        impl: implementation of the ops.
        group: the ranks, or None for this process alone.

    Raises:
        TypeError: a dtype does not fit.
        ValueError: a shape, a device or a range does not fit; the ranks differ.
    """
    if distributed.num_ranks(group) > 1:
        return distributed.contrastive_rows(
            z, tau, labels, mode=mode, group=group, bank=bank, impl=impl
        )
    if bank is None:
        lse, pairs = contrastive_rows(z, tau, labels, mode=mode, impl=impl)
    else:
        lse, pairs = bank_rows(z, tau, labels, bank=bank, mode=mode, impl=impl)
    return BatchRows(z.detach(), lse.detach(), pairs)
