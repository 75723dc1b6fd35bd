"""Batches in which every anchor has positives: scans x position partitions x slices."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from spcl_fast.segmentation.data.meta_labels import position_partition


class GroupSampler:
    """Draws batches of slice indices, for ACDC in the paper 10 scans x 3 partitions x 1 slice.

    A batch holds distinct scans, and up to ``slices_per_partition`` distinct slices from each
    partition of each scan. A partition with fewer slices contributes all of them; an empty one is
    skipped. The generator holds all random state: restoring it repeats the batches.

    Args:
        scan: (n,) int64, scan of each slice.
        slice_index: (n,) int64, place in the stack.
        num_slices: (n,) int64, slices in the stack.
        num_scans: Scans in a batch, at most the number of different scans.
        num_partitions: Position partitions of a stack.
        slices_per_partition: Slices drawn from each partition of each scan.
        generator: CPU generator, advanced by every call.

    Raises:
        ValueError: A count is below 1, or num_scans exceeds the number of scans.
    """

    def __init__(
        self,
        scan: Tensor,  # (n,)
        slice_index: Tensor,  # (n,)
        num_slices: Tensor,  # (n,)
        *,
        num_scans: int,
        num_partitions: int,
        slices_per_partition: int,
        generator: torch.Generator,
    ) -> None:
        ids, dense_scan = torch.unique(scan.cpu(), return_inverse=True)
        if not 1 <= num_scans <= len(ids):
            raise ValueError(
                f"num_scans must be in 1..{len(ids)} (the scans there are), got {num_scans}"
            )
        if slices_per_partition < 1:
            raise ValueError(f"slices_per_partition must be at least 1, got {slices_per_partition}")
        partition = position_partition(slice_index.cpu(), num_slices.cpu(), num_partitions)
        cell = dense_scan * num_partitions + partition
        counts = torch.bincount(cell, minlength=len(ids) * num_partitions)
        order = torch.argsort(cell, stable=True)
        first = counts.cumsum(0) - counts
        width = max(int(counts.max()), slices_per_partition)
        members = torch.full((len(counts), width), -1)
        members[cell[order], torch.arange(len(cell)) - first[cell[order]]] = order
        # (scans, partitions, width) slice indices, -1 where a partition has fewer slices
        self._members = members.view(len(ids), num_partitions, width)
        self._num_scans = num_scans
        self._slices_per_partition = slices_per_partition
        self._generator = generator

    def __call__(self) -> Tensor:
        """Draw one batch: (b,) int64 slice indices on the CPU, b <= scans x partitions x slices."""
        scans = torch.randperm(len(self._members), generator=self._generator)[: self._num_scans]
        members = self._members[scans]  # (num_scans, partitions, width)
        priority = torch.rand(members.shape, generator=self._generator)
        priority = priority.masked_fill(members < 0, -1.0)
        chosen = members.gather(2, priority.topk(self._slices_per_partition, dim=2).indices)
        return chosen[chosen >= 0]


class GroupBatches(Sampler[list[int]]):
    """The batches of a `GroupSampler` for a `torch.utils.data.DataLoader`, as its batch_sampler.

    Args:
        sample: Draws a batch.
        num_batches: Batches of an epoch.
    """

    def __init__(self, sample: GroupSampler, num_batches: int) -> None:
        self._sample, self._num_batches = sample, num_batches

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self._num_batches):
            yield self._sample().tolist()

    def __len__(self) -> int:
        return self._num_batches
