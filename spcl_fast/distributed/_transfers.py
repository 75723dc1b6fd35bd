"""What crosses the ranks, without gradients: rows, sums and facts, by any backend and PyTorch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def exchange(facts: list[int], group: Any, device: torch.device) -> list[list[int]]:
    """Return the integers of every rank; the host reads them."""
    own = torch.tensor([facts], device=device)
    everyone: list[list[int]] = gather(own, [1] * dist.get_world_size(group), group).tolist()
    return everyone


def gather(x: Tensor, sizes: list[int], group: Any) -> Tensor:
    """Return the rows of all ranks, padded for the transfer to the most rows of a rank."""
    most = max(sizes)
    if most == 0:
        return x.clone()
    if x.shape[0] < most:
        x = torch.cat([x, x.new_zeros(most - x.shape[0], *x.shape[1:])])
    everyone = x.new_empty(len(sizes), *x.shape)
    # The name of the collective changed with PyTorch 2.13.
    collective = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    collective(as_bytes(everyone).flatten(), as_bytes(x).flatten(), group=group)
    if min(sizes) == most:
        return everyone.flatten(0, 1)
    return torch.cat([rows[:size] for rows, size in zip(everyone, sizes, strict=True)])


def own_rows_of_sum(x: Tensor, sizes: list[int], group: Any) -> Tensor:
    """Return this rank's rows of the sum of `x` (N, D) over the ranks."""
    rank = dist.get_rank(group)
    if not has_reduce_scatter(x.device, group):
        return torch.split(all_reduced(x, group, dist.ReduceOp.SUM), sizes)[rank]
    most = max(sizes)
    padded = x.new_zeros(len(sizes), most, x.shape[1])
    for mine, rows in zip(padded, torch.split(x, sizes), strict=True):
        mine[: rows.shape[0]] = rows
    out = x.new_empty(most, x.shape[1])
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    scatter(out, padded.flatten(0, 1), group=group)
    return out[: sizes[rank]]


def has_reduce_scatter(device: torch.device, group: Any) -> bool:
    """Return whether sums are scattered; older gloo cannot, and uses an all-reduce instead."""
    return device.type != "cpu" and dist.get_backend(group) != "gloo"


def all_reduced(x: Tensor, group: Any, op: Any) -> Tensor:
    """Return the reduction of `x` over the ranks, a new tensor."""
    x = x.clone(memory_format=torch.contiguous_format)
    if x.numel() > 0:
        dist.all_reduce(x, op, group=group)
    return x


def as_bytes(x: Tensor) -> Tensor:
    """Return a contiguous view or copy as bytes, which every backend can move."""
    x = x.contiguous()
    if x.stride(-1) != 1:  # which does not matter to a dimension of size 1, but to a view
        x = x.clone(memory_format=torch.contiguous_format)
    return x.view(torch.uint8)
