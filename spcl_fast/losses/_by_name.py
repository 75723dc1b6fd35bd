"""What a loss is given once for all labels, or by the names of the labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from spcl_fast.ops._checks import as_number

T = TypeVar("T")


def by_name(
    name: str, value: T | Mapping[str, T], labels: Mapping[str, Tensor], *, is_dict: bool
) -> dict[str, T]:
    """Return one value for every label; `is_dict` if they were given as a dict."""
    if isinstance(value, float) or not isinstance(value, Mapping):  # which takes longer to ask
        return dict.fromkeys(labels, value)
    if not is_dict:
        raise ValueError(f"{name} must be a single value for a single label, got a dict")
    missing, extra = sorted(set(labels) - set(value)), sorted(set(value) - set(labels))
    if missing or extra:
        raise ValueError(
            f"{name} must name the labels {sorted(labels)}, got missing {missing}, extra {extra}"
        )
    return dict(value)


def windows_by_name(
    window: float | Mapping[str, float | None] | None,
    labels: Mapping[str, Tensor],
    *,
    is_dict: bool,
) -> dict[str, float | None]:
    """Return the window of every label; a dict may leave labels out, which means equality."""
    if window is None:
        return dict.fromkeys(labels)
    if is_dict and isinstance(window, Mapping):
        extra = sorted(set(window) - set(labels))
        if extra:
            raise ValueError(
                f"window must name the labels {sorted(labels)} only, got extra {extra}"
            )
        windows = {name: window.get(name) for name in labels}
    else:
        windows = by_name("window", window, labels, is_dict=is_dict)
    return {
        name: None if x is None else float(as_number("window", x)) for name, x in windows.items()
    }


def bank_labels_by_name(
    bank: Tensor | None,
    bank_labels: Tensor | Mapping[str, Tensor] | None,
    labels: Mapping[str, Tensor],
    *,
    is_dict: bool,
) -> dict[str, Tensor]:
    """Return the labels of the bank by name, empty without a bank."""
    if (bank is None) != (bank_labels is None):
        given = "bank" if bank_labels is None else "bank_labels"
        raise ValueError(f"bank and bank_labels must be given together, got {given} alone")
    if bank_labels is None:
        return {}
    if is_dict and not isinstance(bank_labels, Mapping):
        raise ValueError("bank_labels must be a dict by name as labels, got a tensor")
    return by_name("bank_labels", bank_labels, labels, is_dict=is_dict)
