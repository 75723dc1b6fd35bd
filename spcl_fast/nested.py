"""The tensors inside what a model returns, and the same structure around other tensors."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors of a tensor, and of tuples, lists, mappings and dataclasses of them."""
    return (
        [value] if isinstance(value, Tensor) else [y for x in _parts(value) for y in tensors_in(x)]
    )


def with_tensors(value: Any, tensors: Sequence[Tensor]) -> Any:
    """Return what `value` is, of the same types, with other tensors in the order of `tensors_in`.

    Args:
        value: a structure that `tensors_in` takes; anything else in it stays as it is.
        tensors: as many as it holds.
    """
    return _filled(value, iter(tensors))


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (tuple, list)):
        return list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, x.name) for x in dataclasses.fields(value)]
    return []


def _filled(value: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(value, Tensor):
        return next(tensors)
    parts = [_filled(x, tensors) for x in _parts(value)]
    if isinstance(value, Mapping):
        if type(value) is dict:
            return dict(zip(value, parts, strict=True))
        new: Any = copy.copy(value)  # a subclass may have more than items
        for key, part in zip(value, parts, strict=True):
            new[key] = part
        return new
    if isinstance(value, (tuple, list)):
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    if parts:
        new = copy.copy(value)
        for field, part in zip(dataclasses.fields(value), parts, strict=True):
            object.__setattr__(new, field.name, part)
        return new
    return value
