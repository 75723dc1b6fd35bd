"""What all kernels over tiles of pairs share: device, scalars, tiles of rows, similarities."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spcl_fast.kernels._features import KNOWN_MULTIPLE

_KNOWN_MULTIPLE = tl.constexpr(KNOWN_MULTIPLE)


def device_of(z: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which kernels are launched on the device of `z`."""
    return torch.cuda.device(z.device) if z.is_cuda else nullcontext()


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
    """Return a multiple of ALIGNMENT in a form that shows the compiler that it is one.

    Rows of 100 features are then read 4 at a time instead of one at a time.
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
    """Return z_i . r_j, (rows, cols), for any number of features, BLOCK_D at a time."""
    dots = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
    for first in range(0, D, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        z_i = load_tile(z_ptr, rows, N, d, D, stride_n, stride_d)
        r_j = load_tile(refs_ptr, cols, M, d, D, refs_stride_n, refs_stride_d)
        dots = tl.dot(z_i, tl.trans(r_j), dots, input_precision=PRECISION)
    return dots
