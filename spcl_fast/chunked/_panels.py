"""Panels: rows [r0, r1) of a similarity matrix against columns [c0, c1).

A square matrix is symmetric: its panels take the columns from r0 on, and each pair outside the
panel's leading block serves both of its rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Elements of a panel. On a CPU it stays in the cache, elsewhere it keeps the device busy.
PANEL_ELEMENTS = {"cpu": 1 << 18}
PANEL_ELEMENTS_ELSEWHERE = 1 << 22
# A product of fewer rows is slow; a panel of a very wide matrix holds this many times its width.
MIN_PANEL_ROWS = 16
# Below this many rows a panel over intervals grows regardless of what it wastes.
MIN_INTERVAL_ROWS = 128


def panel_elements(device: torch.device) -> int:
    """Return how many elements a panel on `device` should hold."""
    return PANEL_ELEMENTS.get(device.type, PANEL_ELEMENTS_ELSEWHERE)


def triangle_panels(num_rows: int, elements: int) -> Iterator[tuple[int, int]]:
    """Yield (r0, r1) of the panels of a square matrix, taller as the columns get fewer."""
    r0 = 0
    while r0 < num_rows:
        r1 = min(num_rows, r0 + max(MIN_PANEL_ROWS, elements // (num_rows - r0)))
        yield r0, r1
        r0 = r1


def row_panels(num_rows: int, num_cols: int, elements: int) -> Iterator[tuple[int, int]]:
    """Yield (r0, r1) of the panels of a rectangular matrix."""
    height = max(MIN_PANEL_ROWS, elements // max(num_cols, 1))
    for r0 in range(0, num_rows, height):
        yield r0, min(num_rows, r0 + height)


def interval_panels(
    first: list[int], last: list[int], elements: int
) -> Iterator[tuple[int, int, int, int]]:
    """Yield (r0, r1, c0, c1) that cover the columns [first_i, last_i) of every row i.

    Args:
        first: first column of each row, not decreasing over the rows that have any.
        last: column behind the last of each row; <= first where the row has none.
        elements: most elements of a panel of more than MIN_PANEL_ROWS rows.
    """
    num_rows = len(first)
    r0 = 0
    while r0 < num_rows:
        if last[r0] <= first[r0]:
            r0 += 1
            continue
        r1, c0, c1, used = r0, first[r0], last[r0], 0
        while r1 < num_rows:
            reach = max(c1, last[r1])
            rows, area = r1 + 1 - r0, (r1 + 1 - r0) * (reach - c0)
            used += max(0, last[r1] - first[r1])
            # One class alone has area <= 2 used + its width, two of equal size have 4 used.
            if rows > MIN_PANEL_ROWS and area > elements:
                break
            if rows > MIN_INTERVAL_ROWS and area > 3 * used:
                break
            r1, c1 = r1 + 1, reach
        yield r0, r1, c0, c1
        r0 = r1


class Workspace:
    """Panels carved out of one allocation."""

    def __init__(self, z: Tensor) -> None:
        self._like = z
        self._flat = z.new_empty(0)

    def panel(self, num_rows: int, num_cols: int) -> Tensor:
        """Return an uninitialised (num_rows, num_cols) matrix; it is valid until the next call."""
        size = num_rows * num_cols
        if self._flat.numel() < size:
            self._flat = self._like.new_empty(size)
        return self._flat[:size].view(num_rows, num_cols)
