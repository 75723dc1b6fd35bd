"""Rows sorted by label, and the panels of the sorted matrix that can hold positive pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from spcl_fast.chunked._panels import (
    interval_panels,
    panel_elements,
    row_panels,
    triangle_panels,
)
from spcl_fast.devices import is_host
from spcl_fast.precision import accumulator_dtype


class Panel(NamedTuple):
    """Rows [r0, r1) of the sorted rows against columns [c0, c1) of the sorted columns."""

    r0: int
    r1: int
    c0: int
    c1: int
    first_off_diagonal: int
    """First column behind the leading block of a square matrix, whose rows see both orders of a
    pair; 0 with references."""
    positive: Tensor
    """(r1 - r0, c1 - c0) bool."""


class SortedLabels:
    """The orders that make the positives of every row one interval of columns."""

    def __init__(self, labels: Tensor, ref_labels: Tensor | None, window: float | None) -> None:
        self.is_square = ref_labels is None
        self.window = window
        self._row_keys, self.row_order = torch.sort(_keys(labels, window, unknown=-1), stable=True)
        if ref_labels is None:
            self.col_order = self.row_order
            self._col_keys = self._row_keys
            if window is None:  # an unknown row must not equal an unknown column
                self._col_keys = torch.where(self._row_keys < 0, -2, self._row_keys)
        else:
            self._col_keys, self.col_order = torch.sort(
                _keys(ref_labels, window, unknown=-2), stable=True
            )

    def panels(self) -> Iterator[Panel]:
        """Yield panels that together hold every positive pair (once, if square, in either order).

        On a CPU only the columns that can be positive are visited; elsewhere that would need their
        bounds on the host, so all of them are.
        """
        num_rows, num_cols = self._row_keys.shape[0], self._col_keys.shape[0]
        elements = panel_elements(self._row_keys.device)
        if is_host(self._row_keys.device):
            boxes = interval_panels(*self._intervals(), elements)
        elif self.is_square:
            boxes = ((r0, r1, r0, num_rows) for r0, r1 in triangle_panels(num_rows, elements))
        else:
            boxes = ((r0, r1, 0, num_cols) for r0, r1 in row_panels(num_rows, num_cols, elements))
        for r0, r1, c0, c1 in boxes:
            positive = self._positive(slice(r0, r1), slice(c0, c1))
            # A panel of the last rows can be narrower than tall.
            first_off_diagonal = min(r1 - r0, c1 - c0) if self.is_square else 0
            yield Panel(r0, r1, c0, c1, first_off_diagonal, positive)

    def _positive(self, rows: slice, cols: slice) -> Tensor:
        row_keys, col_keys = self._row_keys[rows, None], self._col_keys[cols]
        if self.window is None:
            positive = row_keys == col_keys
        else:
            positive = (row_keys - col_keys).abs_() <= self.window
        return positive.fill_diagonal_(False) if self.is_square else positive

    def _intervals(self) -> tuple[list[int], list[int]]:
        """Return, on the host, the columns [first, last) that can be positive for each row."""
        rows, cols = self._row_keys, self._col_keys
        if self.window is None:
            first = torch.searchsorted(cols, rows)
            last = torch.searchsorted(cols, rows, right=True)
        else:
            cols = cols[: int((~cols.isnan()).sum())]  # NaN sorts last
            # Wider than the rounding of the subtraction that decides.
            reach = self.window + 1e-12 * (rows.abs() + self.window)
            first = torch.searchsorted(cols, rows - reach)
            last = torch.searchsorted(cols, rows + reach, right=True)
            last = torch.where(rows.isnan(), first, last)
        if self.is_square:  # only the pairs that no earlier row has seen
            first = torch.arange(rows.shape[0], device=rows.device)
            last = torch.where(last <= first + 1, first, last)
        return first.tolist(), last.tolist()


def _keys(labels: Tensor, window: float | None, unknown: int) -> Tensor:
    """Return sortable labels: int64 with `unknown` for unknown ones, or float64 with NaN."""
    if window is None:
        labels = labels.long()
        return torch.where(labels < 0, unknown, labels)
    labels = labels.to(accumulator_dtype(labels.device))
    return torch.where((labels >= 0) & labels.isfinite(), labels, torch.nan)
