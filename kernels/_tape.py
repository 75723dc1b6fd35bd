"""What a function launched, noted so that it can be repeated on other tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spcl_fast.kernels._bound import Noted, Number, is_descriptor
from spcl_fast.kernels._similarities import device_of
from spcl_fast.operands import Kept, Piece

Results = tuple[Tensor | None, ...]
Launcher = Callable[..., Any]
Allocation = Callable[[], Tensor | None]
Picker = Callable[[Sequence[Any]], Sequence[Any]]

_ALIGNMENT = 256  # of what is allocated
_SMALL = 1 << 16  # bytes of scratch that may live as long as what is kept: one allocation less
_KEPT = -3  # of the tensors of a tape


class Tape(NamedTuple):
    launches: list[tuple[Launcher, Picker]]  # with what picks the arguments from all there are
    places: list[tuple[int, int]]  # arguments: which tensor, bytes from where it begins
    described: list[tuple[int, int, Any]]  # the same with a descriptor of it
    constants: list[Any]  # further arguments, behind the numbers
    new: list[Allocation]  # of results, what is kept, scratch, and nothing
    results: Picker  # from inputs and new ones
    kept: tuple[Piece | None, ...]
    kept_bytes: int
    begin: Callable[[Tensor], Any]

    def play(
        self, inputs: Sequence[Tensor | None], numbers: Sequence[float]
    ) -> tuple[Results, Kept]:
        """Launch the kernels on other tensors."""
        tensors = [*inputs]
        for allocate in self.new:
            tensors.append(allocate())
        begin = self.begin
        begins: list[Any] = []
        for x in tensors:
            begins.append(None if x is None else begin(x))
        arguments: list[Any] = []
        for k, offset in self.places:
            arguments.append(begins[k] + offset)
        for k, offset, x in self.described:
            arguments.append(_described(x, begins[k] + offset))
        arguments += numbers
        arguments += self.constants
        assert inputs[0] is not None
        if inputs[0].is_cuda:
            with device_of(inputs[0]):
                self._launch(arguments)
        else:
            self._launch(arguments)
        return tuple(self.results(tensors)), Kept((tensors[_KEPT],), self.kept)

    def _launch(self, arguments: Sequence[Any]) -> None:
        for launcher, picked in self.launches:
            launcher(*picked(arguments))

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
    """Tells which tensor of a tape an argument belongs to: inputs, results, kept ones, scratch."""

    def __init__(self, inputs: Sequence[Tensor | None], results: Results, kept: Results) -> None:
        self.inputs = inputs
        self.new = [x for x in results if x is not None and self._input(x) is None]
        self.sizes = [0, 0]  # bytes of what is kept, and of scratch
        self._storages: dict[int, tuple[int, int]] = {}  # which tensor, where in it
        for k, x in enumerate(self.new):
            self._take(x, len(inputs) + k, 0)
        for y in kept:
            if y is not None:
                assert self._input(y) is None
                if _begin(y) not in self._storages:
                    self._take(y, len(inputs) + len(self.new), self._add(y, 0))

    def find(self, x: Tensor) -> tuple[int, int]:
        """Return which tensor, and how many bytes from where it begins."""
        found = self._input(x)
        if found is not None:
            return found
        begin = _begin(x)
        if begin not in self._storages:
            is_small = x.untyped_storage().nbytes() <= _SMALL
            memory = 0 if self.sizes[0] and is_small else 1
            which = len(self.inputs) + len(self.new) + memory
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
            if y is not None and _begin(y) == begin and y.data_ptr() <= address
        ]
        offset, k = min(found, default=(0, None))
        return None if k is None else (k, offset)


def _begin(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _allocation(
    shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Callable[[], Tensor]:
    return partial(torch.empty_strided, shape, stride, dtype=dtype, device=device)


def _none() -> None:
    """Allocate nothing."""


def _picker(places: Sequence[int]) -> Picker:
    """Return what picks elements; that of one alone would not return a sequence."""
    return itemgetter(*places) if len(places) > 1 else itemgetter(slice(places[0], places[0] + 1))


def tape_of(
    launches: Sequence[Noted],
    inputs: Sequence[Tensor | None],
    num_numbers: int,
    results: Results,
    kept: Results,
) -> Tape:
    """Return the tape of a function of `inputs` and numbers that launched `launches`."""
    owners = _Owners(inputs, results, kept)
    places: dict[tuple[int, int], int] = {}
    described: list[tuple[int, int, Any]] = []
    constants: list[Any] = []

    def place_of(x: Any) -> tuple[int, int]:
        """Return which kind of argument x is, in the order of `play`, and which one of them."""
        if isinstance(x, Tensor):
            return 0, places.setdefault(owners.find(x), len(places))
        if is_descriptor(x):
            plain = copy.copy(x)
            plain.base = None
            described.append((*owners.find(x.base), plain))
            return 1, len(described) - 1
        if isinstance(x, Number):
            return 2, x.which
        constants.append(x)
        return 3, len(constants) - 1

    noted = [(launcher, [place_of(x) for x in args]) for launcher, args in launches]
    begins = accumulate([0, len(places), len(described), num_numbers])
    firsts = dict(enumerate(begins))
    assert inputs[0] is not None
    device = inputs[0].device
    new: list[Allocation] = [_allocation(x.shape, x.stride(), x.dtype, device) for x in owners.new]
    new += [_allocation((n,), (1,), torch.uint8, device) if n else _none for n in owners.sizes]
    nothing = len(inputs) + len(new)
    return Tape(
        [(f, _picker([firsts[kind] + k for kind, k in args])) for f, args in noted],
        list(places),
        described,
        constants,
        [*new, _none],
        _picker([nothing if x is None else owners.find(x)[0] for x in results]),
        tuple([None if x is None else Piece(owners.find(x)[1], x.shape, x.dtype) for x in kept]),
        owners.sizes[0],
        begins_at(device),
    )
