"""Panels of rows of a matrix that is never whole in memory."""

from __future__ import annotations

PANEL_ELEMENTS = 1 << 22


def panels(num_rows: int, num_columns: int) -> list[tuple[int, int]]:
    """Return (start, stop) of panels of at most about 4 million elements, at least one row each."""
    step = max(1, PANEL_ELEMENTS // max(1, num_columns))
    starts = range(0, max(1, num_rows), step)
    return [(start, min(start + step, num_rows)) for start in starts]
