"""How kernels read rows of features: precision of a product, padding, steps, alignment."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

_FLOAT32 = {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}
# tl.dot takes no fewer features.
_MIN_BLOCK = 16
# Triton recognises integers that are multiples of this, not of smaller powers of two.
KNOWN_MULTIPLE = 16
# By precision of a product; "tf32" stands for half precision too. The other two take many
# instructions a product and hold their operands in registers.
# Columns of a gradient that one program owns, which are its accumulator.
_GRADIENT_BLOCK = {"tf32": 256, "tf32x3": 128, "ieee": 128}
# The longest rows that a program holds while it visits others; features per step of longer ones.
_WHOLE_ROW = {"tf32": 256, "tf32x3": 64, "ieee": 32}
_STEP = {"tf32": 64, "tf32x3": 32, "ieee": 32}


def dot_precision(dtype: torch.dtype) -> str:
    """Return the input precision of a product: for float32 that of torch.mm."""
    if dtype != torch.float32:
        return "tf32"  # ignored for half precision
    if torch.version.hip is not None:
        return "ieee"  # the only one that every AMD GPU supports
    return _FLOAT32[torch.get_float32_matmul_precision()]


def padded_features(dim: int) -> int:
    """Return the power of two of features that holds a row of `dim`."""
    return int(max(triton.next_power_of_2(dim), _MIN_BLOCK))


def gradient_block(dim: int, precision: str) -> int:
    """Return the power of two of gradient columns that one program owns."""
    return min(padded_features(dim), _GRADIENT_BLOCK[precision])


def dot_block(dim: int, precision: str) -> int:
    """Return the power of two of features per step of z_i . z_j; all of them if at least `dim`."""
    padded = padded_features(dim)
    return padded if padded <= _WHOLE_ROW[precision] else _STEP[precision]


def row_alignment(*matrices: Tensor) -> int:
    """Return the power of two, at most 16, that divides the features and row strides of all."""
    sizes = [size for z in matrices for size in (z.shape[1], z.stride(0))]
    return math.gcd(KNOWN_MULTIPLE, *sizes)


def is_aligned(*matrices: Tensor) -> bool:
    """Return whether all rows can be read 16 bytes at a time."""
    return row_alignment(*matrices) * matrices[0].element_size() >= 16
