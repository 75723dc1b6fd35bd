"""What the kernels over positive pairs share: rows in the order of their labels."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from spcl_fast.kernels._sorted_labels import SortedLabels


def sorted_rows(z: Tensor, refs: Tensor | None, order: SortedLabels) -> tuple[Tensor, Tensor]:
    """Return copies of rows and columns in sorted order, contiguous for any strides of `z`."""
    rows = z[order.row_order].contiguous()
    return rows, rows if refs is None else refs[order.col_order].contiguous()


def as_scalar(value: float | Tensor) -> float | Tensor:
    """Return a scalar argument of a kernel: an int would be compiled into the kernel."""
    return value if isinstance(value, Tensor) else float(value)


@triton.jit
def columns_to_visit(first, last):
    """Return begin and end of the smallest range of columns that holds the intervals of all rows.

    If all are empty, begin is end: prefetched addresses would overflow from 2^31 - 1 on.
    """
    end = tl.max(last, 0)
    begin = tl.min(tl.where(last > first, first, 2147483647), 0)
    return tl.minimum(begin, end), end


@triton.jit
def is_positive(row, col, first, last, IS_SQUARE: tl.constexpr):
    """Return which pairs are positive, (BLOCK_M, BLOCK_N)."""
    inside = (col[None, :] >= first[:, None]) & (col[None, :] < last[:, None])
    if IS_SQUARE:
        inside &= col[None, :] != row[:, None]
    return inside
