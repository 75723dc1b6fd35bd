"""What kernels over tiles of pairs share: launches, scalars, rows, similarities."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from spcl_fast.kernels._configs import Config

_FLOAT32 = {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}
# tl.dot takes no fewer features.
_MIN_BLOCK_D = 16
# Triton finds out by itself whether an integer is a multiple of this, but of no smaller one.
_KNOWN_MULTIPLE = tl.constexpr(16)


def dot_precision(dtype: torch.dtype) -> str:
    """Return the input precision of a dot: that of torch.mm for float32."""
    if dtype != torch.float32:
        return "tf32"  # means nothing for half types
    if torch.version.hip is not None:
        return "ieee"  # the one that every AMD GPU has
    return _FLOAT32[torch.get_float32_matmul_precision()]


def padded_features(dim: int) -> int:
    """Return the power of two of features that hold a row of `dim`."""
    return int(max(triton.next_power_of_2(dim), _MIN_BLOCK_D))


def row_alignment(*matrices: Tensor) -> int:
    """Return the power of two, 16 at most, that divides features and row strides of all."""
    sizes = [size for z in matrices for size in (z.shape[1], z.stride(0))]
    return math.gcd(_KNOWN_MULTIPLE.value, *sizes)


def is_aligned(*matrices: Tensor) -> bool:
    """Return whether all rows can be read 16 bytes at a time."""
    return row_alignment(*matrices) * matrices[0].element_size() >= 16


def device_of(z: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which the device of `z` is the one that kernels are launched on."""
    return torch.cuda.device(z.device) if z.is_cuda else nullcontext()


def launch_options(config: Config) -> dict[str, int]:
    """Return the keywords of a launch that a configuration decides."""
    return {
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }


@triton.jit
def scalar(value):
    """Return a float32 argument that is a number or a pointer to one."""
    if isinstance(value, tl.tensor):
        if value.dtype.is_ptr():
            value = tl.load(value)
        return value.to(tl.float32)
    return tl.full((), value, tl.float32)  # the interpreter leaves a Python float as it is


@triton.jit
def multiple_of(value, ALIGNMENT: tl.constexpr):
    """Return a multiple of ALIGNMENT as what the compiler knows to be one.

    Rows of 100 features are then read 4 at a time, else one at a time.
    """
    if ALIGNMENT > 1 and ALIGNMENT < _KNOWN_MULTIPLE:
        value = value // ALIGNMENT * ALIGNMENT
    return value


@triton.jit
def load_tile(z_ptr, rows, num_rows, d, D, stride_n, stride_d):
    """Return features d of rows, (BLOCK, BLOCK_D), of a (num_rows, D) matrix; 0 outside."""
    offsets = rows.to(tl.int64)[:, None] * stride_n + d.to(tl.int64)[None, :] * stride_d
    mask = (rows < num_rows)[:, None] & (d < D)[None, :]
    return tl.load(z_ptr + offsets, mask=mask, other=0.0)


@triton.jit
def dots_by_blocks(
    z_ptr,  # (N, D)
    rows,
    N,
    refs_ptr,  # (M, D)
    cols,
    M,
    D,
    stride_n,
    stride_d,
    refs_stride_n,
    refs_stride_d,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return z_i . r_j, (rows, cols), of any number of features, BLOCK_D at a time."""
    dots = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        z_i = load_tile(z_ptr, rows, N, d, D, stride_n, stride_d)
        r_j = load_tile(refs_ptr, cols, M, d, D, refs_stride_n, refs_stride_d)
        dots = tl.dot(z_i, tl.trans(r_j), dots, input_precision=PRECISION)
    return dots
