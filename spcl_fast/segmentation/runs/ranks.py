"""The processes that train one network together, and the part of a batch that each of them has.

Every rank draws the same random numbers, for the whole batch, and computes its own rows. A loss is
that of the whole batch on every rank, and its gradient W times that of this rank's rows, so that
the average over W ranks, which DistributedDataParallel takes, is that of one process.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spcl_fast.distributed.collectives import gather_results, sum_over_ranks

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes of a run; the defaults mean this one alone.

    Attributes:
        rank: Number of this process, from 0.
        world: How many there are.
        group: Their process group.
    """

    rank: int = 0
    world: int = 1
    group: Any = None

    @classmethod
    def current(cls) -> Ranks:
        """Return the ranks of the default process group, if there is one."""
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def rows(self, count: int) -> Rows:
        """Return this rank's part of a batch of `count` slices.

        Raises:
            ValueError: Some rank would have none.
        """
        if count < self.world:
            raise ValueError(
                f"a batch must have a slice for each of the {self.world} ranks, got {count}"
            )
        return Rows(self, count)

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over the ranks, differentiable; gradients are summed too."""
        return x if self.world == 1 else sum_over_ranks(x, self.group)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average gradients outside of `parallel` over the ranks."""
        if self.world > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad, group=self.group)
                    parameter.grad /= self.world

    def parallel(self, module: nn.Module, *, own_buffers: bool) -> nn.Module:
        """Return the module with gradients averaged over the ranks.

        Args:
            module: Called once before every backward.
            own_buffers: Each forward starts from the buffers of rank 0, as statistics of BatchNorm
                that are not synchronised.
        """
        if self.world == 1:
            return module
        known = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers"  # since PyTorch 2.13
        options: dict[str, Any] = {name if name in known else "broadcast_buffers": own_buffers}
        return DistributedDataParallel(module, process_group=self.group, **options)

    def compile(self, *modules: nn.Module) -> None:
        """Compile modules, in one graph each in a process alone; collectives break it."""
        for module in modules:
            module.compile(fullgraph=self.world == 1)

    def on_first(self, work: Callable[[], T]) -> T | None:
        """Return what `work` returns on rank 0, None on the others; an error is raised by all."""
        result: T | None = None
        error: Exception | None = None
        if self.is_first:
            try:
                result = work()
            except Exception as problem:
                error = problem
        if reason := self.told(None if error is None else str(error)):
            raise error or ValueError(reason)
        return result

    def first_then_others(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, on rank 0 before it begins on the others.

        What rank 0 leaves on disk, the others find. An error of rank 0 is raised by all.
        """
        result = self.on_first(work)
        return result if self.is_first else work()  # type: ignore[return-value]

    def told(self, value: T) -> T:
        """Return the value of rank 0."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]


ALONE = Ranks()


@dataclass(frozen=True)
class Rows:
    """This rank's part of the slices of a batch: consecutive, equal or one more than the others'.

    Attributes:
        ranks: The processes.
        of: Slices in the whole batch.
    """

    ranks: Ranks
    of: int

    def __len__(self) -> int:
        return self._size(self.ranks.rank)

    def take(self, x: Tensor) -> Tensor:
        """Return this rank's rows of x (slices, ...)."""
        start = self._start(self.ranks.rank)
        return x if self.ranks.world == 1 else x[start : start + len(self)]

    def take_views(self, x: Tensor) -> Tensor:
        """Return this rank's rows of x (2 slices, ...), all first views before all second ones."""
        return x if self.ranks.world == 1 else torch.cat([self.take(half) for half in x.chunk(2)])

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over the whole batch, given the mean over this rank's slices."""
        return self.ranks.sum(value * (len(self) / self.of))

    @torch.no_grad()
    def gather(self, x: Tensor) -> Tensor:
        """Return what all ranks have, in order of rank.

        Args:
            x: (k slices, ...) with the same k on every rank.
        """
        world = self.ranks.world
        if world == 1:
            return x
        sizes = [self._size(rank) * (len(x) // len(self)) for rank in range(world)]
        return gather_results(x, sizes, self.ranks.group)

    def _start(self, rank: int) -> int:
        return rank * self.of // self.ranks.world

    def _size(self, rank: int) -> int:
        return self._start(rank + 1) - self._start(rank)
