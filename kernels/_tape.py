"""What a function launched, noted so that it can be repeated on other tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import starmap
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spcl_fast.kernels._bound import Noted, Number, is_descriptor
from spcl_fast.kernels._similarities import device_of
from spcl_fast.operands import Kept, Piece

Results = tuple[Tensor | None, ...]
Launcher = Callable[..., Any]
Allocate = Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], Tensor]

_ALIGNMENT = 256  # of what is allocated
_KEPT, _SCRATCH = 0, 1  # of what a tape allocates
_SMALL = 1 << 16  # bytes of scratch that may live as long as what is kept: one allocation less
# As compiled graphs allocate, in half the time of an operator: on a CPU or the current GPU.
_compiled: Any = torch._C._dynamo.guards
_ALLOCATE: dict[str, Allocate] = {
    "cpu": _compiled._empty_strided_cpu,
    "cuda": _compiled._empty_strided_cuda,
}


class Tape(NamedTuple):
    launches: list[tuple[Launcher, slice]]  # with which of the arguments
    arguments: list[Any]  # of all launches; what differs is put in place
    places: list[tuple[int, int, int]]  # argument, of which tensor, bytes from where it begins
    described: list[tuple[int, int, int, Any]]  # the same with a descriptor of it
    numbers: list[tuple[int, int]]  # argument, which number
    new: list[tuple[tuple[int, ...], tuple[int, ...], torch.dtype]]
    """What is allocated: results, and where needed what is kept, and scratch."""
    parts: list[tuple[int, tuple[tuple[int, ...], tuple[int, ...], int]]]
    """Results that are parts of others: of which tensor, shape, stride, where it begins."""
    results: list[int]  # which of inputs, new ones and parts, -1 for nothing
    kept: tuple[Piece | None, ...]
    kept_bytes: int
    memory: int | None  # which of the new ones is kept
    allocate: Allocate
    begin: Callable[[Tensor], Any]

    def play(self, inputs: Sequence[Tensor], numbers: Sequence[float]) -> tuple[Results, Kept]:
        """Launch the kernels on other tensors."""
        if inputs[0].is_cuda:
            with device_of(inputs[0]):
                return self._play(inputs, numbers)
        return self._play(inputs, numbers)

    def _play(self, inputs: Sequence[Tensor], numbers: Sequence[float]) -> tuple[Results, Kept]:
        new = [*starmap(self.allocate, self.new)]
        tensors: list[Any] = [*inputs, *new]
        begins = [*map(self.begin, tensors)]
        arguments = self.arguments.copy()
        for place, k, offset in self.places:
            arguments[place] = begins[k] + offset
        for place, k, offset, x in self.described:
            arguments[place] = _described(x, begins[k] + offset)
        for place, k in self.numbers:
            arguments[place] = numbers[k]
        for launcher, own in self.launches:
            launcher(*arguments[own])
        for k, part in self.parts:
            tensors.append(_compiled._reinterpret_tensor(tensors[k], *part))
        tensors.append(None)
        memory = None if self.memory is None else new[self.memory]
        return tuple([tensors[k] for k in self.results]), Kept((memory,), self.kept)

    def gathered(self, kept: Results, like: Tensor) -> Kept:
        """Return copies of what was kept, in one memory."""
        memory = like.new_empty(self.kept_bytes, dtype=torch.uint8) if self.kept_bytes else None
        copies = Kept((memory,), self.kept)
        for x, y in zip(kept, copies.tensors(), strict=True):
            if x is not None and y is not None:
                y.copy_(x)
        return copies


def _described(descriptor: Any, base: Any) -> Any:
    """Return the descriptor of other memory."""
    other = copy.copy(descriptor)
    other.base = base if isinstance(base, Tensor) else _Base(base)
    return other


class _Base(int):
    """The address of a tensor that a descriptor describes."""

    def data_ptr(self) -> int:
        return self


class _Bytes:
    """An address for the driver of an emulator, which takes tensors."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __add__(self, offset: int) -> Tensor:
        storage = self.x.untyped_storage()
        first = self.x.data_ptr() - storage.data_ptr() + offset
        size = (storage.nbytes() - first,)
        return torch.empty(0, dtype=torch.uint8).set_(storage, first, size, (1,))


def begins_at(device: torch.device) -> Callable[[Tensor], Any]:
    """Return what gives an argument of a launch from a tensor, to which bytes can be added."""
    return _Bytes if device.type == "cpu" else Tensor.data_ptr


class _Owners:
    """Tells which tensor of a tape an argument belongs to."""

    def __init__(self, inputs: Sequence[Tensor], results: Results, kept: Results) -> None:
        self.inputs = inputs
        self.sizes = [0, 0]  # bytes of what is kept, and of scratch
        self.new: list[Tensor] = []
        self.parts: list[Tensor] = []
        self._first = len(inputs)
        self._storages: dict[int, tuple[int, int]] = {}  # which tensor, where in it
        for x in results:
            if x is None or self._input(x) is not None:
                continue
            if x.nbytes < x.untyped_storage().nbytes():
                self.parts.append(x)
            else:
                self._take(x, self._first + len(self.new), 0)
                self.new.append(x)
        for y in kept:
            if y is not None:
                assert self._input(y) is None
                if _begin(y) not in self._storages:
                    self._take(y, self._first + len(self.new), self._add(y, _KEPT))

    def result(self, x: Tensor | None) -> int:
        """Return which tensor a result is; the parts are the last ones but nothing, -1."""
        for k, part in enumerate(self.parts):
            if x is part:
                return self._first + len(self.new) + sum(map(bool, self.sizes)) + k
        return -1 if x is None else self.find(x)[0]

    def find(self, x: Tensor) -> tuple[int, int]:
        """Return which tensor, and how many bytes from where it begins."""
        found = self._input(x)
        if found is not None:
            return found
        begin = _begin(x)
        if begin not in self._storages:
            is_small = x.untyped_storage().nbytes() <= _SMALL
            memory = _KEPT if self.sizes[_KEPT] and is_small else _SCRATCH
            which = self._first + len(self.new) + (memory if self.sizes[_KEPT] else 0)
            self._storages[begin] = which, self._add(x, memory)
        k, offset = self._storages[begin]
        return k, offset + x.data_ptr() - begin

    def _take(self, x: Tensor, which: int, offset: int) -> None:
        assert x.is_contiguous()
        assert x.data_ptr() == _begin(x)
        assert _begin(x) not in self._storages
        self._storages[_begin(x)] = which, offset

    def _add(self, x: Tensor, memory: int) -> int:
        offset = self.sizes[memory]
        size = x.untyped_storage().nbytes()
        self.sizes[memory] += -(-size // _ALIGNMENT) * _ALIGNMENT
        return offset

    def _input(self, x: Tensor) -> tuple[int, int] | None:
        """Return the input that begins closest before x in the same memory."""
        begin, address = _begin(x), x.data_ptr()
        found = [
            (address - y.data_ptr(), k)
            for k, y in enumerate(self.inputs)
            if _begin(y) == begin and y.data_ptr() <= address
        ]
        offset, k = min(found, default=(0, None))
        return None if k is None else (k, offset)


def _begin(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def tape_of(
    launches: Sequence[Noted],
    inputs: Sequence[Tensor],
    results: Results,
    kept: Results,
) -> Tape:
    """Return the tape of a function of `inputs` and numbers that launched `launches`.

    A result may be a part of another.
    """
    owners = _Owners(inputs, results, kept)
    pieces: list[tuple[Launcher, slice]] = []
    arguments: list[Any] = []
    places: list[tuple[int, int, int]] = []
    described: list[tuple[int, int, int, Any]] = []
    numbers: list[tuple[int, int]] = []
    for launcher, args in launches:
        first = len(arguments)
        pieces.append((launcher, slice(first, first + len(args))))
        for place, x in enumerate(args, first):
            is_constant = False
            if isinstance(x, Tensor):
                places.append((place, *owners.find(x)))
            elif is_descriptor(x):
                plain = copy.copy(x)
                plain.base = None
                described.append((place, *owners.find(x.base), plain))
            elif isinstance(x, Number):
                numbers.append((place, x.which))
            else:
                is_constant = True
            arguments.append(x if is_constant else None)
    device = inputs[0].device
    memories = [((n,), (1,), torch.uint8) for n in owners.sizes if n]
    return Tape(
        pieces,
        arguments,
        places,
        described,
        numbers,
        [*[(tuple(x.shape), x.stride(), x.dtype) for x in owners.new], *memories],
        [
            (owners.find(x)[0], (tuple(x.shape), x.stride(), int(x.storage_offset())))
            for x in owners.parts
        ],
        [owners.result(x) for x in results],
        tuple([None if x is None else Piece(owners.find(x)[1], x.shape, x.dtype) for x in kept]),
        owners.sizes[_KEPT],
        len(owners.new) if owners.sizes[_KEPT] else None,
        _ALLOCATE[device.type],
        begins_at(device),
    )
