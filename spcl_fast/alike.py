"""What was found out about tensors, kept for others like them.

Tensors are alike if they agree in class, dtype, device, shape, strides and in whether they need a
gradient, and if the same modes and transforms of PyTorch apply to them: in all but what they hold
and where. PyTorch compares this in one call, as in front of the graphs of torch.compile, in a
fraction of the time that it takes to ask for one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_MOST_KEYS = 256  # a window or a size that changes in every step must not fill the memory
_MOST_OF_A_KEY = 16  # which are compared one after another
_guards: Any = torch._C._dynamo.guards


class Alike(Generic[T]):
    """Values, each for a key and tensors that are alike; the key says how many tensors."""

    def __init__(self) -> None:
        self._found: dict[Hashable, tuple[tuple[Callable[..., bool], T], ...]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: Hashable, tensors: Sequence[Tensor]) -> T | None:
        """Return what was put there for tensors like these.

        What is no tensor is like none, nor are tensors of which one is given twice.
        """
        for are_alike, value in self._found.get(key, ()):
            if are_alike(*tensors):
                return value
        return None

    def put(self, key: Hashable, tensors: Sequence[Tensor], value: T) -> None:
        """Keep a value for tensors like these, if no tensor is given twice."""
        if len({*map(id, tensors)}) < len(tensors):
            return
        guard = _guards.TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
        if len(self._found) >= _MOST_KEYS and key not in self._found:
            self.clear()
        others = self._found.get(key, ())[: _MOST_OF_A_KEY - 1]
        self._found[key] = ((guard.check, value), *others)

    def clear(self) -> None:
        """Forget everything."""
        self._found.clear()
