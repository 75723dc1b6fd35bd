"""What every implementation provides, as typed functions and as ops of torch.library.

Eager calls go straight to the implementation. While torch.compile traces or a transform of
torch.func wraps the tensors, the same call becomes one opaque op of the namespace `spcl_fast`, so
that its shapes alone need to be known and an implementation gets plain tensors. The schema of the
op follows from the annotations, as with `torch.library.custom_op`: the fields of a tuple follow one
another, and what may be a number or a tensor is passed as a number and an optional tensor.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar, get_type_hints

import torch
from torch import Tensor

from spcl_fast.ops._function import is_transformed
from spcl_fast.ops._impl import fused, is_traced
from spcl_fast.pair_weights import Mode

P = ParamSpec("P")
R = TypeVar("R")

_TYPES: dict[Any, str] = {
    Tensor: "Tensor {}",
    Tensor | None: "Tensor? {}",
    float | Tensor: "float {0}, Tensor? {0}_tensor",
    float | None: "float? {}",
    int: "int {}",
    bool: "bool {}",
    Mode: "str {}",
}


class _Operand(NamedTuple):
    """How a parameter is passed to an op."""

    schema: str
    is_number_or_tensor: bool
    kind: Any = None
    """The tuple that it is, if any."""
    fields: tuple[Any, ...] = ()
    """An operand each."""

    @classmethod
    def of(cls, name: str, hint: Any) -> _Operand:
        if hint in _TYPES:
            return cls(_TYPES[hint].format(name), hint == float | Tensor)
        hints = get_type_hints(hint).items()
        fields = tuple(cls.of(f"{name}_{field}", inner) for field, inner in hints)
        return cls(", ".join(field.schema for field in fields), False, hint, fields)


class _Signature:
    """The operands of a function and its result."""

    def __init__(self, function: Callable[..., Any]) -> None:
        hints = get_type_hints(function)
        self.result = hints.pop("return")
        self._operands = tuple(_Operand.of(*hint) for hint in hints.items())
        self._keywords = tuple(inspect.getfullargspec(function).kwonlyargs)

    def schema(self) -> str:
        """Return the schema of the op, which takes the name of the implementation last."""
        operands = ", ".join([*(operand.schema for operand in self._operands), "str impl"])
        num_results = 1 if self.result is Tensor else len(self.result._fields)
        return f"({operands}) -> ({', '.join(['Tensor'] * num_results)})"

    def flat(self, args: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
        """Return what the op takes for the arguments of the function."""
        flat: list[Any] = []
        values = (*args, *(named[name] for name in self._keywords))
        for operand, value in zip(self._operands, values, strict=True):
            flat += _split(operand, value)
        return flat

    def bound(self, flat: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments of the function for what the op takes."""
        values = iter(flat)
        joined = [_joined(operand, values) for operand in self._operands]
        num_positional = len(joined) - len(self._keywords)
        named = dict(zip(self._keywords, joined[num_positional:], strict=True))
        return joined[:num_positional], named


def implemented(fake: Callable[P, R]) -> Callable[Concatenate[str, P], R]:
    """Make the function that runs `fake` by an implementation, whose name comes first.

    Args:
        fake: has the name and signature of the function in every implementation, but for an
            underscore in front, and returns empty results. While compiling, an empty tensor stands
            for None in them.
    """
    function = fake.__name__.removeprefix("_")
    name, signature = f"spcl_fast::{function}", _Signature(fake)

    def run(*flat: Any) -> Any:
        args, named = signature.bound(flat)
        return _filled(fused(flat[-1], function)(*args, **named), flat)

    def run_fake(*flat: Any) -> Any:
        args, named = signature.bound(flat)
        return _filled(fake(*args, **named), flat)

    torch.library.define(name, signature.schema())
    torch.library.impl(name, "CompositeExplicitAutograd", run)
    torch.library.register_fake(name, run_fake)
    op = getattr(torch.ops.spcl_fast, function).default

    @functools.wraps(fake)
    def call(impl: str, /, *args: P.args, **named: P.kwargs) -> R:
        if not is_transformed() or is_traced(impl, function):
            return fused(impl, function)(*args, **named)  # type: ignore[no-any-return]
        outputs = op(*signature.flat(args, named), impl)
        is_tensor = signature.result is Tensor
        return outputs if is_tensor else signature.result(*outputs)  # type: ignore[no-any-return]

    return call


def define_native(schema: str, fake: Callable[..., Any]) -> None:
    """Define an op whose kernels are in csrc.

    Args:
        schema: of an op of the namespace `spcl_fast`.
        fake: takes the arguments of the op that it names, and returns empty results.
    """
    name, _, _ = schema.partition("(")
    torch.library.define(f"spcl_fast::{name}", schema.removeprefix(name))
    arguments = getattr(torch.ops.spcl_fast, name).default._schema.arguments
    wanted = inspect.signature(fake).parameters
    places = {x.name: place for place, x in enumerate(arguments) if x.name in wanted}

    def run_fake(*flat: Any) -> Any:
        return fake(**{x: flat[place] for x, place in places.items()})

    torch.library.register_fake(f"spcl_fast::{name}", run_fake)


def _split(operand: _Operand, value: Any) -> list[Any]:
    """Return what the op takes for `value`."""
    if operand.is_number_or_tensor:
        return [0.0, value] if isinstance(value, Tensor) else [float(value), None]
    if operand.kind is None:
        return [value]
    return [x for field, y in zip(operand.fields, value, strict=True) for x in _split(field, y)]


def _joined(operand: _Operand, values: Iterator[Any]) -> Any:
    """Return what was split."""
    if operand.is_number_or_tensor:
        number, tensor = next(values), next(values)
        return number if tensor is None else tensor
    if operand.kind is None:
        return next(values)
    return operand.kind(*(_joined(field, values) for field in operand.fields))


def _filled(results: Any, flat: Sequence[Any]) -> Any:
    """Return empty tensors for None, and the strides that the fake promises."""
    if isinstance(results, Tensor):
        return results.contiguous()
    like = next(x for x in flat if isinstance(x, Tensor))
    return tuple(like.new_empty(0) if x is None else x.contiguous() for x in results)
