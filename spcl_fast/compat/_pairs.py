"""Losses over listed pairs, in memory proportional to the list."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from spcl_fast.ops._function import OpFunction, first_order_only

MAX_ELEMENTS = 1 << 22


def pair_similarities(z: Tensor, refs: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return z[first] . refs[second], (pairs,), differentiable in `z` and `refs`.

    Args:
        z: (N, D), float32 or float64.
        refs: (M, D).
        first: (pairs,) int64, rows of `z`.
        second: (pairs,) int64, rows of `refs`.
    """
    return _PairSimilarities.apply(z, refs, first, second)  # type: ignore[no-any-return,no-untyped-call]


class _PairSimilarities(OpFunction):
    @staticmethod
    def forward(z: Tensor, refs: Tensor, first: Tensor, second: Tensor) -> Tensor:
        step = max(1, MAX_ELEMENTS // max(1, z.shape[1]))
        parts = zip(torch.split(first, step), torch.split(second, step), strict=True)
        return torch.cat([(z[a] * refs[b]).sum(1) for a, b in parts])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        z, refs, first, second = ctx.saved_tensors
        dz, drefs = torch.zeros_like(z), torch.zeros_like(refs)
        step = max(1, MAX_ELEMENTS // max(1, z.shape[1]))
        parts = (torch.split(x, step) for x in (first, second, upstream))
        for a, b, grad in zip(*parts, strict=True):
            dz.index_add_(0, a, grad[:, None] * refs[b])
            drefs.index_add_(0, b, grad[:, None] * z[a])
        return dz, drefs, None, None


def lse_by_anchor(values: Tensor, anchor: Tensor, num_anchors: int) -> Tensor:
    """Return the log-sum-exp of the values of every anchor, -inf for one without any.

    Args:
        values: (pairs,), floating.
        anchor: (pairs,) int64.
        num_anchors: N.

    Returns:
        (N,), differentiable.
    """
    top = values.new_full((num_anchors,), -math.inf)
    top = top.scatter_reduce(0, anchor, values.detach(), "amax")
    top = torch.where(top.isinf(), 0, top)
    total = torch.zeros_like(top).index_add(0, anchor, (values - top[anchor]).exp())
    return total.log() + top
