"""What the kernels that walk positive pairs share: rows in the order of their labels."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from spcl_fast.kernels._configs import Config, Key
from spcl_fast.kernels._sorted_labels import SortedLabels
from spcl_fast.kernels._tiles import padded_features

# By precision of a dot; "tf32" is of half types too. The other two take many instructions for
# every product and hold their operands in registers.
# Columns of a gradient that one program owns, which are its accumulator.
_GRADIENT_BLOCK = {"tf32": 256, "tf32x3": 128, "ieee": 128}
# The widest rows that a program keeps while it visits others, and features per step beyond these.
_WHOLE_ROW = {"tf32": 256, "tf32x3": 64, "ieee": 32}
_STEP = {"tf32": 64, "tf32x3": 32, "ieee": 32}


def both_half_types(block_d: int, config: Config, arch: int = 80) -> dict[Key, Config]:
    """Return two entries of a table: bfloat16 and float16 differ in one instruction."""
    return {("bf16", block_d, arch): config, ("fp16", block_d, arch): config}


def gradient_block(dim: int, precision: str) -> int:
    """Return the power of two of columns of a gradient that one program owns."""
    return min(padded_features(dim), _GRADIENT_BLOCK[precision])


def dot_block(dim: int, precision: str) -> int:
    """Return the power of two of features of one step of z_i . z_j; all if at least `dim`."""
    padded = padded_features(dim)
    return padded if padded <= _WHOLE_ROW[precision] else _STEP[precision]


def sorted_rows(z: Tensor, refs: Tensor | None, order: SortedLabels) -> tuple[Tensor, Tensor]:
    """Return copies of rows and columns in sorted order, contiguous whatever the strides of `z`."""
    rows = z[order.row_order].contiguous()
    return rows, rows if refs is None else refs[order.col_order].contiguous()


def as_scalar(value: float | Tensor) -> float | Tensor:
    """Return a kernel's scalar: an int would be compiled into it."""
    return value if isinstance(value, Tensor) else float(value)


@triton.jit
def columns_to_visit(first, last):
    """Return the ends of the smallest range of columns that holds the intervals of all rows.

    Without any, begin is end: from 2^31 - 1 the loads that a pipeline issues ahead would overflow.
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
