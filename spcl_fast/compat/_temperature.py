"""Temperatures as other libraries take them: also as tensors, whose value is not read."""

from __future__ import annotations

from torch import Tensor

from spcl_fast.ops._checks import positive_number


def check_temperature(name: str, value: float | Tensor) -> None:
    """Raise unless a number is finite and above 0."""
    if not isinstance(value, Tensor):
        positive_number(name, value)
