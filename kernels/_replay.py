"""The launches of a function, noted once and repeated while its arguments keep their shapes.

A function that only allocates tensors and launches kernels does the same for other tensors like
these: what differs is where they lie. With few rows a step would spend most of its time on finding
out again what to launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from spcl_fast.kernels._bound import Noted, Number, is_descriptor, noted_launches
from spcl_fast.kernels._configs import IS_INTERPRETED
from spcl_fast.kernels._tape import Results, Tape, tape_of
from spcl_fast.operands import Kept

Run = Callable[[Sequence[float]], tuple[Results, Results]]

# So many shapes; a loader of batches of any size must not fill the memory.
_MOST_REMEMBERED = 256
_ALLOCATIONS = frozenset(
    {
        torch.ops.aten.empty.memory_format,
        torch.ops.aten.empty_like.default,
        torch.ops.aten.new_empty.default,
    }
)


def replayed(
    key: tuple[Any, ...],
    given: Sequence[Tensor | None],
    own: Sequence[Tensor | None],
    numbers: Sequence[float],
    run: Run,
) -> tuple[Results, Kept]:
    """Return what `run(numbers)` returns, from its launches of before where there are any.

    Args:
        key: what else decides which kernels `run` launches.
        given: tensors that `run` reads, of any kind, on one device; the first one is not None.
        own: more of them, results of before for such as `given`.
        numbers: that `run` passes to kernels and otherwise compares with inf alone; `key` says
            which ones are inf.
        run: launches kernels, and returns its results and those that are kept for a later call.
    """
    if IS_INTERPRETED:
        return _kept_apart(run(numbers))
    assert given[0] is not None
    place = _place(given[0].device, key, given, own)
    tape = _tapes.get(place)
    inputs = *given, *own
    if tape is not None:
        return tape.play(inputs, numbers)
    if place in _tapes:
        return _kept_apart(run(numbers))
    if len(_tapes) >= _MOST_REMEMBERED:
        _tapes.clear()
    with _OnlyAllocations() as mode, noted_launches() as launches:
        results, kept = run([Number(x, k) for k, x in enumerate(numbers)])
    if not (mode.is_kept and all(map(_can_be_repeated, launches))):
        _tapes[place] = None
        return _kept_apart((results, kept))
    tape = tape_of(launches, inputs, results, kept)
    _tapes[place] = tape
    # as every later call returns them: activation checkpointing counts what is saved
    return results, tape.gathered(kept, given[0])


def _place(
    device: torch.device,
    key: tuple[Any, ...],
    given: Sequence[Tensor | None],
    own: Sequence[Tensor | None],
) -> tuple[Any, ...]:
    """Return all that decides which kernels are launched, and with which arguments."""
    place: list[Any] = [device, *key]
    addresses: list[int] = []
    for x in given:
        if x is None:
            place.append(None)
        else:
            address = x.data_ptr()
            addresses.append(address)
            place += x.dtype, x.shape, x.stride(), address % 16
    for x in own:
        place.append(None if x is None else x.shape)
    if len({*addresses}) < len(addresses):  # the same tensor twice
        place += [addresses.index(address) for address in addresses]
    return tuple(place)


def _kept_apart(results: tuple[Results, Results]) -> tuple[Results, Kept]:
    return results[0], Kept(results[1])


def _can_be_repeated(noted: Noted) -> bool:
    launcher, args = noted
    kinds = int, float, Tensor, type(None)
    is_known = (isinstance(x, kinds) or is_descriptor(x) for x in args)
    return launcher is not None and all(is_known)


_tapes: dict[tuple[Any, ...], Tape | None] = {}


class _OnlyAllocations(TorchDispatchMode):
    """Notes whether an operator did anything but allocate."""

    is_kept = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.is_kept &= func in _ALLOCATIONS or func.is_view
        return func(*args, **kwargs or {})
