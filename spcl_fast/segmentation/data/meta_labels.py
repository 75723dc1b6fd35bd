"""Meta-labels: what is known about a slice without looking at its mask.

position    floor(K idx / n), K partitions of a stack of n slices
patient, phase, group, ...    columns of `Slices.meta`
self        every slice its own label (instance discrimination)
"""

from __future__ import annotations

import torch
from torch import Tensor

from spcl_fast.segmentation.data.slices import Slices


def position_partition(slice_index: Tensor, num_slices: Tensor, num_partitions: int) -> Tensor:
    """Return the partition of its stack that each slice lies in, ``floor(K index / n)``.

    Partitions are comparable between volumes with different numbers of slices; within a volume
    their sizes differ by at most one.

    Args:
        slice_index: (n,) integers, 0 <= slice_index < num_slices.
        num_slices: (n,) integers, slices in the stack.
        num_partitions: K, at least 1.

    Returns:
        (n,) int64 in 0 .. K - 1.

    Raises:
        ValueError: `num_partitions` is below 1.
    """
    if num_partitions < 1:
        raise ValueError(f"num_partitions must be at least 1, got {num_partitions}")
    scaled = num_partitions * slice_index.to(torch.int64)
    return torch.div(scaled, num_slices.to(torch.int64), rounding_mode="floor")


def meta_label(slices: Slices, name: str, num_partitions: int = 3) -> Tensor:
    """Return one meta-label for every slice.

    Args:
        slices: n slices.
        name: ``"position"``, ``"self"`` or a column of ``slices.meta``, such as ``"patient"``.
        num_partitions: Partitions of a stack, for ``"position"``.

    Returns:
        (n,) int64, -1 where unknown, on the device of slices.

    Raises:
        ValueError: There is no such meta-label; the message lists those that exist.
    """
    if name == "position":
        return position_partition(slices.slice_index, slices.num_slices, num_partitions)
    if name == "self":
        return torch.arange(len(slices), device=slices.scan.device)
    if name not in slices.meta:
        known = ", ".join(["position", "self", *sorted(slices.meta)])
        raise ValueError(f"meta-label must be one of {known}, got '{name}'")
    return slices.meta[name]
