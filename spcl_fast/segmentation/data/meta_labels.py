"""Meta-labels: what is known about a slice without looking at its mask.

position    floor(K idx / n), K partitions of a stack of n slices
patient, phase, group, ...    columns of `Slices.meta`
self        every slice its own label (instance discrimination)

A column of numbers, such as an age, is divided into bins or compared within a window; as categories
every number would be a label of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spcl_fast.segmentation.data.slices import Slices

MOST_NUMBERS = 20  # different numbers that are taken as categories unasked
EACH = "each"


def position_partition(slice_index: Tensor, num_slices: Tensor, num_partitions: int) -> Tensor:
    """Return the partition of its stack that each slice lies in, ``floor(K index / n)``.

    Partitions are comparable between volumes with different numbers of slices; within a volume
    their sizes differ by at most one.

    Args:
        slice_index: (n,) integers, 0 <= slice_index < num_slices.
        num_slices: (n,) integers, slices in the stack.
        num_partitions: K, at least 1.

    Returns:
        (n,) int64 in 0 .. K - 1.

    Raises:
        ValueError: `num_partitions` is below 1.
    """
    if num_partitions < 1:
        raise ValueError(f"num_partitions must be at least 1, got {num_partitions}")
    scaled = num_partitions * slice_index.to(torch.int64)
    return torch.div(scaled, num_slices.to(torch.int64), rounding_mode="floor")


def meta_label(slices: Slices, name: str, num_partitions: int = 3) -> Tensor:
    """Return one meta-label for every slice.

    Args:
        slices: n slices.
        name: ``"position"``, ``"self"`` or a column of ``slices.meta``, such as ``"patient"``.
        num_partitions: Partitions of a stack, for ``"position"``.

    Returns:
        (n,) int64, -1 where unknown, on the device of slices.

    Raises:
        ValueError: There is no such meta-label; the message lists those that exist.
    """
    if name == "position":
        return position_partition(slices.slice_index, slices.num_slices, num_partitions)
    if name == "self":
        return torch.arange(len(slices), device=slices.scan.device)
    _check_known(slices, name)
    values = slices.categories[name]
    if name not in ("patient", "phase") and has_many_numbers(values):
        raise ValueError(
            f"meta-label {name} holds {len(values)} different numbers: give bins or a window, such "
            f"as --loss.bins {name}=5 or --loss.windows {name}=10; {name}={EACH} in --loss.bins "
            "takes every number as a category"
        )
    return slices.meta[name]


def has_many_numbers(values: Sequence[str]) -> bool:
    """Return whether the categories of a column are numbers, and more than MOST_NUMBERS."""
    return len(values) > MOST_NUMBERS and all(map(_is_number, values))


def numbers_of(slices: Slices, name: str) -> Tensor:
    """Return a column of numbers for every slice, less its smallest.

    Returns:
        (n,) float64, -1 where unknown.

    Raises:
        ValueError: There is no such column, or it holds something else.
    """
    _check_known(slices, name)
    values = slices.categories[name]
    if other := [value for value in values if not _is_number(value)]:
        raise ValueError(
            f"meta-label {name} must hold numbers for bins or a window, got {other[0]}"
        )
    numbers = torch.tensor([*map(float, values), 0.0], dtype=torch.float64)
    codes = slices.meta[name]
    lowest = numbers[:-1].min() if values else 0.0
    known = numbers.to(codes.device)[codes] - lowest
    return torch.where(codes >= 0, known, -1.0)


def binned(slices: Slices, name: str, bins: str) -> Tensor:
    """Return a column of numbers in bins.

    Args:
        slices: n slices.
        name: The column.
        bins: How many, with about as many slices each; or the numbers, separated by commas, at
            which a new bin begins; or "each", a bin for every number.

    Returns:
        (n,) int64 from 0, -1 where unknown.

    Raises:
        ValueError: As `numbers_of`, or `bins` is none of these.
    """
    if bins == EACH:
        _check_known(slices, name)
        return slices.meta[name]
    numbers = numbers_of(slices, name)
    known = numbers[numbers >= 0]
    if "," in bins:
        values = [float(value) for value in slices.categories[name]]
        parts = [part.strip() for part in bins.split(",") if part.strip()]
        if not parts or not all(map(_is_number, parts)):
            raise ValueError(f"bins of {name} must be numbers, separated by commas, got {bins}")
        edges = torch.tensor(sorted(map(float, parts)), dtype=torch.float64) - min(
            values, default=0
        )
    elif bins.isdigit() and int(bins) >= 2:
        shares = torch.arange(1, int(bins), dtype=torch.float64) / int(bins)
        edges = known.sort().values[(shares * len(known)).long()] if len(known) else shares
    else:
        raise ValueError(
            f"bins of {name} must be 2 or more, numbers with commas or each, got {bins}"
        )
    found = torch.bucketize(numbers, edges.to(numbers.device), right=True)
    return torch.where(numbers >= 0, found, -1)


def _check_known(slices: Slices, name: str) -> None:
    if name not in slices.meta:
        known = ", ".join(["position", "self", *sorted(slices.meta)])
        raise ValueError(f"meta-label must be one of {known}, got '{name}'")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
