"""Joining the processes that torchrun started, and saying what went wrong among them once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

TIMEOUT = timedelta(hours=1)  # the others wait while the first rank validates and evaluates


class Launch:
    """The process group of a command under torchrun; nothing in a process alone.

    Attributes:
        rank: Number of this process.
        world: How many there are.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
        self._store: Any = None

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Make the process group, over NCCL on CUDA and gloo elsewhere, and leave it after.

        Raises:
            RuntimeError: The others are out of reach, or one of them was lost.
        """
        if self.world == 1:
            yield
            return
        self._store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, store=self._store, rank=self.rank, world_size=self.world, timeout=TIMEOUT
        )
        yield  # after an error the group is left as it is: closing it would wait for the others
        dist.destroy_process_group()

    def is_first_to_say(self, message: str) -> bool:
        """Whether no other rank has said this."""
        if self._store is None:
            return self.rank == 0  # what fails before the ranks meet fails on all of them
        try:
            return bool(self._store.add(f"said/{message}", 1) == 1)
        except RuntimeError:  # the store went with the process that held it
            return True


def is_lost_rank(error: RuntimeError) -> bool:
    """Whether a collective failed, as it does when another process has ended."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
