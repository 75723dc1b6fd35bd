"""`contrastive_rows` of a batch whose rows are spread over ranks: 2 N^2 D / W multiply-adds each.

The N gathered rows are cut into W equal blocks, regardless of their owners. In circular order of
the blocks, rank r compares block r with itself, and with the (W - 1) // 2 blocks that follow:
both log-sum-exps of a pair of rows come from its one visit. For even W the opposite block is left,
and is shared: the rank below W / 2 takes the first half of its rows against all of it, the other
rank all of its rows against the second half. So each unordered pair is visited on one rank.

    lse_i = m_i + log sum_r exp(lse^r_i - m_i)    m_i = max_r lse^r_i        two all-reduces of (N,)
    dlse^r_i = exp(lse^r_i - lse_i) sum_r dlse_i                             one

Positive pairs: rank r has the anchors of block r, against block r and against all other rows. Its
losses are gathered (O(N)), and all that follows is the same on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from spcl_fast.distributed.collectives import (
    gather_columns,
    gather_results,
    gather_rows,
    max_over_ranks,
    num_ranks,
    rank_in,
    sum_over_ranks,
)
from spcl_fast.ops import Impl, Label, PositivePairLoss, pair_lse
from spcl_fast.ops._checks import check_labels, check_rows
from spcl_fast.ops._impl import dtype_for, resolve_for
from spcl_fast.ops.composed.bank_rows import References, check_bank, positive_rows
from spcl_fast.ops.composed.merge import merge_lse
from spcl_fast.pair_weights import Mode, check_mode

Span = tuple[int, int]


class BatchRows(NamedTuple):
    """The rows of a whole batch, the same on every rank."""

    z: Tensor
    """(N, D), detached."""
    lse: Tensor
    """(n,) of the rows that this rank brought, detached."""
    pairs: list[PositivePairLoss]
    """(N,), one a label; the losses are differentiable."""


class Blocks(NamedTuple):
    """The rows of a rank and what it compares them with, positions counted from its block on."""

    sizes: list[int]
    """Rows of every block, in order of rank."""
    start: int
    """First row of the block of this rank among the gathered rows."""
    own: int
    """Rows of the block of this rank."""
    rectangles: list[tuple[Span, Span]]
    """(rows, references) that this rank visits besides its own block."""


def blocks_of(num_rows: int, world: int, rank: int) -> Blocks:
    """Return the share of a rank in the unordered pairs of all rows."""
    bounds = [num_rows * k // world for k in range(world + 1)]
    sizes = [b - a for a, b in pairwise(bounds)]
    own = sizes[rank]
    following = (world - 1) // 2
    end = sum((sizes * 2)[rank : rank + following + 1])
    rectangles: list[tuple[Span, Span]] = []
    if following:
        rectangles.append(((0, own), (own, end)))
    if world % 2 == 0:
        opposite = sizes[(rank + world // 2) % world]
        if rank < world // 2:
            rectangles.append(((0, own // 2), (end, end + opposite)))
        else:
            rectangles.append(((0, own), (end + opposite // 2, end + opposite)))
    return Blocks(sizes, bounds[rank], own, rectangles)


def contrastive_rows(
    z: Tensor,
    tau: float | Tensor,
    labels: Sequence[Label],
    *,
    mode: Mode,
    group: Any,
    bank: Tensor | None = None,
    impl: Impl = "auto",
) -> BatchRows:
    """Compute the losses of the rows of all ranks under every label, with a share of the pairs.

    All ranks must call this, and the backward, with equal arguments but for the rows and labels.

    Args:
        z: (n, D), floating; n may differ between ranks and be 0.
        tau: temperature, finite and above 0, or a 0-dim floating tensor on the device of `z`.
        labels: each with (n,) values, and (M,) values of a bank.
        mode: "hard" or "linear", of all labels.
        group: process group with more than one rank.
        bank: (M, D), dtype and device of `z`: further references, the same on every rank.
        impl: implementation of the ops.

    Returns:
        The rows of the batch, differentiable in `z`, `bank` and a tensor `tau`, first order only:
        dz is W times the gradient of what every rank returns, for DistributedDataParallel to
        average; the gradients of `bank` and `tau` are whole on every rank.

    Raises:
        TypeError: a dtype does not fit; floating labels without a window.
        ValueError: a shape, a device, a range, `mode` or `impl` does not fit; ranks differ.
    """
    _check(z, labels, mode, bank)
    W, rank = num_ranks(group), rank_in(group)
    dtype = dtype_for(resolve_for(impl, z), z)
    replicated = [x for x in (bank, tau) if isinstance(x, Tensor)]
    gathered = gather_rows([z], replicated, group, dtype, [label.values.dtype for label in labels])
    (rows,) = gathered.rows
    if isinstance(tau, Tensor):
        tau = gathered.replicated[-1]
    if bank is not None:
        bank = gathered.replicated[0]
    blocks = blocks_of(rows.shape[0], W, rank)
    rolled = rows.roll(-blocks.start, 0)
    own, rest = torch.split(rolled, [blocks.own, rows.shape[0] - blocks.own])
    lse = _merged_lse(rolled, own, bank, blocks, tau, group, impl)
    own_lse = torch.split(lse, blocks.sizes)[rank]
    pairs = []
    columns = gather_columns([label.values for label in labels], gathered.sizes, group)
    for label, everyones in zip(labels, columns, strict=True):
        values = everyones.roll(-blocks.start, 0)
        others = [References(rest, values[blocks.own :])]
        if bank is not None and label.ref_values is not None:
            others.append(References(bank, label.ref_values))
        own_label = Label(values[: blocks.own], label.gamma, label.window)
        pairs.append(positive_rows(own, tau, own_lse, own_label, others, mode=mode, impl=impl))
    return BatchRows(
        rows.detach(),
        torch.split(lse.detach(), gathered.sizes)[rank],
        gather_pairs(pairs, blocks.sizes, group),
    )


def gather_pairs(
    pairs: Sequence[PositivePairLoss], sizes: list[int], group: Any
) -> list[PositivePairLoss]:
    """Return the results of the rows of all ranks, (N,), from those of blocks of them."""
    losses = gather_results(torch.stack([x.loss for x in pairs], 1), sizes, group).unbind(1)
    columns = [*(x.weight_sum.detach() for x in pairs), *(x.num_pos for x in pairs)]
    counts = gather_columns(columns, sizes, group)
    weight_sums, num_pos = counts[: len(pairs)], counts[len(pairs) :]
    return [PositivePairLoss(*of) for of in zip(losses, weight_sums, num_pos, strict=True)]


def _merged_lse(
    rolled: Tensor,  # (N, D), from the own block on
    own: Tensor,
    bank: Tensor | None,
    blocks: Blocks,
    tau: float | Tensor,
    group: Any,
    impl: Impl,
) -> Tensor:
    """Return lse (N,) in the order of the gathered rows."""
    parts = [((0, blocks.own), pair_lse(own, tau, impl=impl))]
    for (a, b), (c, d) in blocks.rectangles:
        of_rows, of_refs = pair_lse(rolled[a:b], tau, refs=rolled[c:d], impl=impl)
        parts += [((a, b), of_rows), ((c, d), of_refs)]
    if bank is not None:
        parts.append(((0, blocks.own), pair_lse(own, tau, refs=bank, impl=impl)[0]))
    N = rolled.shape[0]
    placed = [
        pad(part, (a, N - b), value=-math.inf).roll(blocks.start, 0) for (a, b), part in parts
    ]
    return merge_over_ranks(placed, group)


def merge_over_ranks(parts: Sequence[Tensor], group: Any) -> Tensor:
    """Return `merge_lse` of the parts of all ranks, (N,) each."""
    return merge_lse(
        parts,
        maximum=lambda x: max_over_ranks(x, group),
        total=lambda x: sum_over_ranks(x, group),
    )


def _check(z: Tensor, labels: Sequence[Label], mode: Mode, bank: Tensor | None) -> None:
    """Raise before the first collective: a rank that raises later leaves the others waiting."""
    check_rows("z", z)
    check_mode(mode)
    for label in labels:
        check_labels("labels", label.values, z.shape[0], z, label.window)
    if bank is not None:
        check_bank(z, bank, labels)
