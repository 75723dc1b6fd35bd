"""Launches that remember what was bound, where Triton's own look at every argument again.

Numbers are taken as they are and tensors by dtype and alignment, so that a launch as one before
goes straight to its compiled kernel. (On an H100's host the JIT took 11 to 14 us a launch.)
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from triton.runtime.jit import JITFunction

# So many shapes; a loader of batches of any size must not fill the memory.
_MOST_REMEMBERED = 1024


# What launches a compiled kernel, None if it is not known, and its arguments.
Noted = tuple[Any, tuple[Any, ...]]


class Number(float):
    """An argument of a launch that may be another number when the launch is repeated."""

    which: int

    def __new__(cls, value: float, which: int) -> Number:
        number = super().__new__(cls, value)
        number.which = which
        return number


def is_descriptor(x: object) -> bool:
    """Return whether x describes a tensor to the tensor memory accelerator."""
    return hasattr(x, "block_shape")


class _Notes(threading.local):
    launches: list[Noted] | None = None


_notes = _Notes()


@contextmanager
def noted_launches() -> Iterator[list[Noted]]:
    """Note the launches of this thread."""
    launches: list[Noted] = []
    _notes.launches = launches
    try:
        yield launches
    finally:
        _notes.launches = None


class Bound:
    """A kernel, launched as `kernel[grid](*args, **constants)`, its compile-time arguments last."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.__name__ = kernel.__name__
        self._launchers: dict[tuple[Any, ...], Noted] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        """Return what launches the kernel on a grid."""

        def launch(*args: Any, **constants: Any) -> None:
            if not isinstance(self.kernel, JITFunction):  # interpreted
                self.kernel[grid](*args, **constants)
                return
            key = (
                grid,
                args[0].get_device(),
                *constants.values(),
                *[
                    x if type(x) is int
                    else (x.dtype, x.data_ptr() % 16) if isinstance(x, Tensor)
                    else float if isinstance(x, float)
                    else (x.base.dtype, *x.block_shape) if is_descriptor(x)
                    else x
                    for x in args
                ],
            )  # fmt: skip
            found = self._launchers.get(key)
            if found is not None:
                launcher, values = found
                launcher(*args, *values)
            else:
                found = self._launch_first(grid, args, constants)
                if found is not None:
                    if len(self._launchers) >= _MOST_REMEMBERED:
                        self._launchers.clear()
                    self._launchers[key] = found
            if _notes.launches is not None:
                launcher, values = found or (None, ())
                _notes.launches.append((launcher, (*args, *values)))

        return launch

    def _launch_first(
        self, grid: tuple[int, ...], args: tuple[Any, ...], constants: dict[str, Any]
    ) -> Noted | None:
        """Launch by Triton, and return what launches again and the compile-time arguments."""
        plain = [float(x) if isinstance(x, Number) else x for x in args]
        compiled = self.kernel[grid](*plain, **constants)
        if compiled is None:  # a hook of Triton's has launched something else
            return None
        return compiled[(*grid, 1, 1)[:3]], self._values(args, constants)

    def _values(self, args: tuple[Any, ...], constants: dict[str, Any]) -> tuple[Any, ...]:
        """Return the compile-time arguments that are parameters, in their order."""
        return tuple(constants[name] for name in self.kernel.arg_names[len(args) :])


def bound(kernel: Any) -> Bound:
    """Return a kernel whose launches are remembered."""
    return Bound(kernel)


def cdiv(size: int, block: int) -> int:
    """Return how many blocks cover a size; triton.cdiv takes a microsecond of the host."""
    return -(-size // block)
