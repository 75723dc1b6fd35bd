"""InfoNCE of pairs that are spread over ranks: each rank takes 1 / W of the anchors.

Anchors and their references are gathered, and cut into W blocks of pairs. Rank r compares the
anchors of block r with all references; the log-sum-exps of its rows are complete, those of the
references are merged over the ranks as in contrastive_rows.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spcl_fast.distributed.collectives import (
    gather_columns,
    gather_rows,
    num_ranks,
    rank_in,
)
from spcl_fast.distributed.contrastive_rows import blocks_of, gather_pairs, merge_over_ranks
from spcl_fast.ops import Impl, PositivePairLoss, pair_lse
from spcl_fast.ops._checks import check_refs, check_rows
from spcl_fast.ops._impl import dtype_for, resolve_for
from spcl_fast.ops.composed.diagonal_pairs import diagonal_pairs


class InfoNCERows(NamedTuple):
    """The anchors of a whole batch, the same on every rank."""

    anchors: Tensor
    """(N, D), detached."""
    lse: Tensor
    """(n,) of the anchors that this rank brought, detached."""
    pairs: list[PositivePairLoss]
    """(N,) of the anchors; then of the references, if symmetric."""


def infonce_rows(
    anchors: Tensor,
    refs: Tensor,
    tau: float | Tensor,
    *,
    symmetric: bool,
    group: Any,
    impl: Impl = "auto",
) -> InfoNCERows:
    """Compute the losses of the anchors of all ranks, each with its share of the similarities.

    Args:
        anchors: (n, D), floating; n may differ between ranks and be 0.
        refs: (n + M, D): the positives of the anchors, then a bank that is the same on every rank.
        tau: temperature, or a 0-dim floating tensor.
        symmetric: add the direction from the references; needs M = 0.
        group: process group with more than one rank.
        impl: implementation of the ops.

    Returns:
        The rows, first order only: the gradients of `anchors` and of the first n `refs` are W
        times, those of the bank and of `tau` whole, as in contrastive_rows.py.

    Raises:
        TypeError: the inputs are not floating, or their dtypes differ.
        ValueError: a shape or a device does not fit; the ranks differ.
    """
    check_rows("anchors", anchors)
    check_refs(anchors, refs, rows="anchors")
    rank = rank_in(group)
    dtype = dtype_for(resolve_for(impl, anchors), anchors)
    paired, bank = torch.split(refs, [anchors.shape[0], refs.shape[0] - anchors.shape[0]])
    replicated = [x for x in (bank, tau) if isinstance(x, Tensor)]
    gathered = gather_rows([anchors, paired], replicated, group, dtype)
    if isinstance(tau, Tensor):
        tau = gathered.replicated[1]
    blocks = blocks_of(gathered.rows[0].shape[0], num_ranks(group), rank)
    own, own_refs = (torch.split(x, blocks.sizes)[rank] for x in gathered.rows)
    everything = torch.cat([gathered.rows[1], gathered.replicated[0]])
    lse, of_refs = pair_lse(own, tau, refs=everything, impl=impl)
    pairs = [diagonal_pairs(own, lse, own_refs, tau, impl)]
    if symmetric:
        lse_refs = merge_over_ranks([of_refs], group)
        pairs.append(
            diagonal_pairs(own_refs, torch.split(lse_refs, blocks.sizes)[rank], own, tau, impl)
        )
    (lse_of_all,) = gather_columns([lse.detach()], blocks.sizes, group)
    return InfoNCERows(
        gathered.rows[0].detach(),
        torch.split(lse_of_all, gathered.sizes)[rank],
        gather_pairs(pairs, blocks.sizes, group),
    )
