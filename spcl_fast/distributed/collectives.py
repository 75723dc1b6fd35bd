"""The collectives of the distributed losses, each with its gradient.

Every rank computes the same scalar loss L from a share of the pairs. What crosses the ranks:

    gathered rows x      forward: all-gather           backward: W sum over ranks of dx, own rows
    replicated tensors   forward: nothing              backward: sum over ranks
    sums                 forward: sum over ranks       backward: sum over ranks
    results              forward: all-gather           backward: own rows (L is on every rank)

The W in the first line is what DistributedDataParallel divides by: the average of the gradients
that W ranks compute from W dx is the gradient of L. A replicated tensor, such as a temperature or a
memory bank, has the whole gradient on every rank, which averaging does not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from spcl_fast.distributed._transfers import (
    all_reduced,
    as_bytes,
    exchange,
    gather,
    own_rows_of_sum,
)
from spcl_fast.ops._function import first_order_only
from spcl_fast.precision import dtype_of_results

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LABEL_DTYPES = (
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.bool),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64, *DTYPES),
)
MAX_TENSORS = 4  # of rows and of what is replicated: facts are as many on every rank


class Gathered(NamedTuple):
    """A gathered batch."""

    rows: list[Tensor]
    """(N, D) each, rows of all ranks in order of rank; differentiable."""
    replicated: list[Tensor]
    """What every rank held already; differentiable, its gradient is summed over ranks."""
    sizes: list[int]
    """Rows of every rank."""


def num_ranks(group: dist.ProcessGroup | None) -> int:
    """Return the number of ranks of `group`, 1 without one.

    Raises:
        TypeError: `group` is not a process group.
        ValueError: this process is not in `group`.
    """
    if group is None:
        return 1
    known = isinstance(group, dist.ProcessGroup) or group is dist.GroupMember.NON_GROUP_MEMBER
    if not known:
        raise TypeError(f"group must be a process group or None, got {type(group).__name__}")
    if dist.get_rank(group) < 0:
        raise ValueError("group must hold this process, got a group of others")
    return dist.get_world_size(group)


def rank_in(group: Any) -> int:
    """Return the rank of this process in `group`."""
    return dist.get_rank(group)


def gather_rows(
    rows: Sequence[Tensor],
    replicated: Sequence[Tensor],
    group: dist.ProcessGroup,
    dtype: torch.dtype,
    labels: Sequence[torch.dtype] = (),
) -> Gathered:
    """Gather rows, and let the gradients of all inputs be summed over the ranks.

    The host reads the numbers of rows, the only synchronisation. If any rank needs a gradient, all
    ranks take part in the backward, including those whose inputs need none.

    Args:
        rows: (n, D) each, floating; n may differ between ranks and be 0.
        replicated: floating, the same on every rank.
        group: the ranks.
        dtype: dtype of the gathered rows, and of rows that are replicated.
        labels: dtypes of the labels that are gathered later, the same on every rank.

    Raises:
        ValueError: the ranks differ in the number of features, the dtype, the shape of what is
            replicated, or the labels. Every rank raises.
    """
    inputs = [*rows, *replicated]
    needs = [torch.is_grad_enabled() and x.requires_grad for x in inputs]
    absent = MAX_TENSORS - len(inputs)
    layout = [rows[0].shape[1], DTYPES.index(rows[0].dtype)]
    layout += [*(x.numel() for x in replicated), *[-1] * absent]
    own = [rows[0].shape[0], _code_of(labels), *needs, *[False] * absent, *layout]
    facts = exchange(own, group, rows[0].device)
    _check_equal(facts)
    sizes = [fact[0] for fact in facts]
    # One for all ranks: their backwards run the same collectives.
    needed = [any(fact[2 + k] for fact in facts) for k in range(len(inputs))]
    grad = torch.is_grad_enabled() and any(needed)
    anchor = rows[0].new_zeros((), requires_grad=grad)
    outputs = _GatherRows.apply(  # type: ignore[no-untyped-call]
        anchor, group, sizes, dtype, needed, len(rows), *inputs
    )
    outputs = [x if need else x.detach() for x, need in zip(outputs, needed, strict=True)]
    return Gathered(outputs[: len(rows)], outputs[len(rows) :], sizes)


def _code_of(dtypes: Sequence[torch.dtype]) -> int:
    """Return a number of 60 bits that tells the dtypes of up to 15 labels."""
    digits = [1 + LABEL_DTYPES.index(x) for x in dtypes[:15]]
    return sum(digit << 4 * k for k, digit in enumerate(digits))


def _check_equal(facts: list[list[int]]) -> None:
    """Raise unless all ranks have equal facts, but for how many rows they bring and need."""
    layouts = {tuple(fact[2 + MAX_TENSORS :]) for fact in facts}
    if len(layouts) > 1:
        raise ValueError(
            "all ranks must give as many features, one dtype and replicated tensors of one size, "
            f"got (features, dtype, sizes) {sorted(layouts)}"
        )
    if len({fact[1] for fact in facts}) > 1:
        given = []
        for fact in facts:
            digits = [fact[1] >> 4 * k & 15 for k in range(15)]
            names = [str(LABEL_DTYPES[x - 1]).removeprefix("torch.") for x in digits if x]
            given.append(" ".join(names) or "none")
        raise ValueError(
            f"labels must be of the same dtypes on all ranks, got {', '.join(given)}, by rank"
        )


def gather_columns(columns: Sequence[Tensor], sizes: list[int], group: Any) -> list[Tensor]:
    """Return (N,) from the (n,) of every rank, of any dtypes, by one all-gather of their bytes."""
    packed = torch.cat([as_bytes(x[:, None]) for x in columns], 1)
    gathered = torch.split(gather(packed, sizes, group), [x.element_size() for x in columns], 1)
    return [
        # a copy: the storage of a single row begins anywhere
        column.clone(memory_format=torch.contiguous_format).view(x.dtype).squeeze(1)
        for column, x in zip(gathered, columns, strict=True)
    ]


def gather_results(x: Tensor, sizes: list[int], group: Any) -> Tensor:
    """Return (N, ...) from the (n, ...) of every rank; the gradient is that of the own rows."""
    return _GatherResults.apply(x, sizes, group)  # type: ignore[no-any-return,no-untyped-call]


def sum_over_ranks(x: Tensor, group: Any) -> Tensor:
    """Return the sum of `x` over the ranks; the gradients are summed too."""
    return _SumOverRanks.apply(x, group)  # type: ignore[no-any-return,no-untyped-call]


def max_over_ranks(x: Tensor, group: Any) -> Tensor:
    """Return the maximum of `x` over the ranks, detached."""
    return all_reduced(x.detach(), group, dist.ReduceOp.MAX)


class _GatherRows(torch.autograd.Function):
    """One node for all inputs, so that every rank runs its collectives in the same order."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,  # makes the outputs require a gradient where another rank needs one
        group: Any,
        sizes: list[int],
        dtype: torch.dtype,
        needed: list[bool],
        num_gathered: int,
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.group, ctx.sizes, ctx.num_gathered = group, sizes, num_gathered
        ctx.needed, ctx.dtypes = needed, [x.dtype for x in inputs]
        gathered = [gather(x, sizes, group).to(dtype) for x in inputs[:num_gathered]]
        # a temperature keeps its dtype; the gradients of rows are summed in that of the gathered
        replicated = [x.to(dtype) if x.ndim else x for x in inputs[num_gathered:]]
        return (*gathered, *(x.view_as(x) for x in replicated))

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        W = len(ctx.sizes)
        gradients: list[Tensor | None] = [None] * len(upstream)
        for k, dx in enumerate(upstream):
            if ctx.needed[k]:
                dx = dx.to(dtype_of_results(dx))
                if k < ctx.num_gathered:
                    dx = own_rows_of_sum(dx, ctx.sizes, ctx.group) * W
                else:
                    dx = all_reduced(dx, ctx.group, dist.ReduceOp.SUM)
                gradients[k] = dx.to(ctx.dtypes[k])
        return (None,) * 6 + tuple(gradients)


class _GatherResults(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int], group: Any) -> Tensor:
        ctx.sizes, ctx.rank = sizes, dist.get_rank(group)
        return gather(x, sizes, group)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, None, None]:
        return torch.split(dx, ctx.sizes)[ctx.rank], None, None


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return all_reduced(x, group, dist.ReduceOp.SUM)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, None]:
        return all_reduced(dx, ctx.group, dist.ReduceOp.SUM), None
