"""Argument checks of the ops: from metadata alone, never from the values of a tensor."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import threshold

from spcl_fast.precision import accumulator_dtype


def check_tensor(name: str, x: object) -> None:
    """Raise unless `x` is a tensor; an array of NumPy has a shape and a device too."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")


def check_rows(name: str, x: Tensor) -> None:
    """Raise unless `x` is a floating (rows, features) matrix."""
    check_tensor(name, x)
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}")
    if x.ndim != 2:
        raise ValueError(f"{name} must be (rows, features), got {tuple(x.shape)}")


def check_refs(z: Tensor, refs: Tensor, *, rows: str = "z") -> None:
    """Raise unless `refs` can be compared with the rows of `z`, which the caller named `rows`."""
    check_rows("refs", refs)
    check_device("refs", refs, z, rows=rows)
    if refs.dtype != z.dtype:
        raise TypeError(f"refs must have the dtype of {rows}, {z.dtype}, got {refs.dtype}")
    if refs.shape[1] != z.shape[1]:
        raise ValueError(f"refs must be (M, {z.shape[1]}) as {rows}, got {tuple(refs.shape)}")


def check_device(name: str, x: Tensor, z: Tensor, *, rows: str = "z") -> None:
    """Raise unless `x` lies on the device of `z`, which the caller named `rows`."""
    if x.device != z.device:
        raise ValueError(f"{name} must be on the device of {rows}, {z.device}, got {x.device}")


def as_number(name: str, value: Any, z: Tensor | None = None) -> float | Tensor:
    """Return a tensor as it is, and any real number, also a 0-dim array of NumPy, as a float.

    torch.compile takes the scalars of NumPy for arrays too: traced with `z`, they become tensors.

    Raises:
        TypeError: `value` is neither.
    """
    if isinstance(value, (float, Tensor)):
        return value
    if isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    if getattr(value, "ndim", None) == 0:
        if z is not None and torch.compiler.is_compiling():
            return torch.as_tensor(value).to(z.device, accumulator_dtype(z.device))
        if value.dtype.kind in "iuf":
            return float(value)
    raise TypeError(f"{name} must be a number or a 0-dim tensor, got {type(value).__name__}")


def positive_number(name: str, value: Any, *, finite: bool = True) -> float:
    """Return `value` as a float; raise unless it is above 0, and finite if it has to be."""
    number = as_number(name, value)
    if isinstance(number, Tensor):
        raise TypeError(f"{name} must be a number, got a tensor")
    if not number > 0 or (finite and number == math.inf):
        kind = "finite and above 0" if finite else "above 0"
        raise ValueError(f"{name} must be {kind}, got {number}")
    return number


def positive_scalar(name: str, value: Any, z: Tensor, *, finite: bool) -> float | Tensor:
    """Return a positive number or a 0-dim floating tensor on the device of `z`.

    A tensor is not read: it is NaN in what is returned if it is not above 0. While torch.compile
    traces, a finite number becomes a tensor, so that another number needs no other graph.

    Raises:
        TypeError: `value` is neither a number nor a tensor.
        ValueError: a number is out of range; a tensor is of another kind or elsewhere.
    """
    is_number = type(value) is float and value > 0 and (value < math.inf or not finite)
    if is_number and not torch.compiler.is_compiling():
        return value  # type: ignore[no-any-return]
    value = as_number(name, value, z)
    if isinstance(value, Tensor):
        if value.ndim != 0 or not value.is_floating_point():
            raise ValueError(
                f"{name} must be a number or a 0-dim floating tensor, "
                f"got {value.dtype} {tuple(value.shape)}"
            )
        check_device(name, value, z)
        return threshold(value, 0.0, math.nan)
    number = positive_number(name, value, finite=finite)
    if torch.compiler.is_compiling() and number != math.inf:
        # a product: what is filled with a number has it as a constant
        return number * torch.ones((), dtype=accumulator_dtype(z.device), device=z.device)
    return number


def check_labels(name: str, labels: Tensor, num_rows: int, z: Tensor, window: float | None) -> None:
    """Raise unless `labels` holds one label per row, integer without a window."""
    check_tensor(name, labels)
    if window is not None and not 0 <= as_number("window", window) < math.inf:
        raise ValueError(f"window must be finite and at least 0, got {window}")
    if labels.shape != (num_rows,):
        raise ValueError(f"{name} must be ({num_rows},), got {tuple(labels.shape)}")
    check_device(name, labels, z)
    if labels.dtype.is_complex or (labels.is_floating_point() and window is None):
        kind = "integer without a window" if window is None else "real"
        raise TypeError(f"{name} must be {kind}, got {labels.dtype}")
    if labels.dtype == torch.uint64 and window is None:  # its upper half would be unknown
        raise TypeError(f"{name} must be of a dtype whose values int64 holds, got {labels.dtype}")


def check_pairs(
    z: Tensor,
    lse: Tensor,
    labels: Tensor,
    *,
    window: float | None,
    refs: Tensor | None,
    ref_labels: Tensor | None,
) -> None:
    """Raise unless the arguments that the ops over positive pairs share fit together."""
    check_rows("z", z)
    check_labels("labels", labels, z.shape[0], z, window)
    check_tensor("lse", lse)
    if lse.shape != (z.shape[0],) or lse.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"lse must be float32 or float64 ({z.shape[0]},), got {lse.dtype} {tuple(lse.shape)}"
        )
    check_device("lse", lse, z)
    if (refs is None) != (ref_labels is None):
        given = "refs" if ref_labels is None else "ref_labels"
        raise ValueError(f"refs and ref_labels must be given together, got {given} alone")
    if refs is not None and ref_labels is not None:
        check_refs(z, refs)
        check_labels("ref_labels", ref_labels, refs.shape[0], z, window)
