"""Values of a JSON file whose keys may be absent or hold another type than they should."""

from __future__ import annotations

import math
from typing import Any, TypeGuard


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether value is a finite number; None and infinity stand for "no pace" in a log."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def dict_or_empty(value: Any) -> dict[str, Any]:
    """Return value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def list_or_empty(value: Any) -> list[Any]:
    """Return value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def number_or_none(value: Any) -> float | None:
    """Return value if it is a finite number, else None."""
    return float(value) if is_number(value) else None


def text_or_none(value: Any) -> str | None:
    """Return value if it is a string, else None."""
    return value if isinstance(value, str) else None


def numbers_in(value: Any) -> tuple[float, ...]:
    """Return the finite numbers in a list; empty if value is not a list."""
    return tuple(float(item) for item in list_or_empty(value) if is_number(item))
