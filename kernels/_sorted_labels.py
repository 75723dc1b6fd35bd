"""Labels sorted on the device, so that the positives of a row are one interval of columns.

A bisection finds every bound with the comparison that defines a positive pair, in float64
|y_i - y_j| <= window: differences are rounded, and rounding is monotonic. No value is copied to
the host.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 128


class Intervals(NamedTuple):
    """The positives of sorted rows: the sorted columns [first_i, last_i)."""

    first: Tensor
    """(N,) int32."""
    last: Tensor
    """(N,) int32, `first` if a row has no positives. In a square matrix a row is in its own."""


class SortedLabels:
    """The stable orders of rows and columns by label.

    Attributes:
        is_square: whether the columns are the rows.
        row_order: (N,) int64, the row at each sorted position.
        col_order: (M,) int64, the same object as `row_order` if square.
    """

    def __init__(self, labels: Tensor, ref_labels: Tensor | None, window: float | None) -> None:
        """Sort labels (N,) and ref_labels (M,): integers, or with a window any real dtype."""
        self.is_square = ref_labels is None
        self._window = None
        if window is not None:  # a Python float would become float32 on its way into a kernel
            self._window = torch.full((), window, dtype=torch.float64, device=labels.device)
        self._row_keys, self.row_order = _sort(labels, window)
        self._col_keys, self.col_order = self._row_keys, self.row_order
        if ref_labels is not None:
            self._col_keys, self.col_order = _sort(ref_labels, window)

    def row_intervals(self) -> Intervals:
        """Return the columns that are positive for every sorted row."""
        return self._intervals(self._row_keys, self._col_keys)

    def col_intervals(self) -> Intervals:
        """Return the rows that are positive for every sorted column."""
        return self._intervals(self._col_keys, self._row_keys)

    def _intervals(self, keys: Tensor, others: Tensor) -> Intervals:
        num_rows, num_others = keys.shape[0], others.shape[0]
        bounds = Intervals(*keys.new_empty(2, num_rows, dtype=torch.int32))
        if num_rows:
            _interval_kernel[(triton.cdiv(num_rows, _BLOCK),)](
                keys,
                others,
                self._window,
                *bounds,
                num_rows,
                num_others,
                num_others.bit_length(),
                IS_SQUARE=self.is_square,
                BLOCK=_BLOCK,
            )
        return bounds


def _sort(labels: Tensor, window: float | None) -> tuple[Tensor, Tensor]:
    """Return sorted keys, int64 or float64, and order; unknown is -1 (first) or NaN (last)."""
    if window is None:
        keys = labels.long().clamp_min(-1)
    else:
        keys = labels.double()
        keys = torch.where((keys >= 0) & keys.isfinite(), keys, torch.nan)
    return torch.sort(keys, stable=True)


@triton.jit
def _interval_kernel(
    keys_ptr,  # (N,) sorted
    others_ptr,  # (M,) sorted
    window_ptr,  # () float64, or None
    first_ptr,  # (N,)
    last_ptr,  # (N,)
    N,
    M,
    num_steps,  # that halve M to 0
    IS_SQUARE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = row < N
    key = tl.load(keys_ptr + row, mask=is_row, other=-1)
    first = _bisect(others_ptr, key, window_ptr, M, num_steps, IS_LAST=False)
    last = _bisect(others_ptr, key, window_ptr, M, num_steps, IS_LAST=True)
    alone = 1 if IS_SQUARE else 0  # an interval that holds only the row itself
    has_positives = (key >= 0) & (last - first > alone)
    tl.store(first_ptr + row, tl.where(has_positives, first, 0), mask=is_row)
    tl.store(last_ptr + row, tl.where(has_positives, last, 0), mask=is_row)


@triton.jit
def _bisect(others_ptr, key, window_ptr, M, num_steps, IS_LAST: tl.constexpr):
    """Return how many others lie before the interval of each key, or before its end."""
    begin = tl.zeros(key.shape, tl.int32)
    end = begin + M
    for _ in range(num_steps):
        is_open = begin < end
        middle = begin + (end - begin) // 2
        other = tl.load(others_ptr + middle, mask=is_open, other=0)
        if window_ptr is None:
            is_before = other <= key if IS_LAST else other < key
        elif IS_LAST:
            is_before = other - key <= tl.load(window_ptr)  # False for NaN, which sorts last
        else:
            is_before = key - other > tl.load(window_ptr)
        begin = tl.where(is_open & is_before, middle + 1, begin)
        end = tl.where(is_open & ~is_before, middle, end)
    return begin
