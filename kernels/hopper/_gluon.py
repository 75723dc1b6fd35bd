"""Gluon, and what differs between that of Triton 3.6, 3.8 and 3.9."""

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

__all__ = ["MAX_REGISTERS", "REGISTERS_2", "REGISTERS_3", "UNSPECIALISED", "WORKERS_2", "WORKERS_3"]
__all__ += ["descriptor", "gl", "gluon", "load_tile", "mbarrier"]
__all__ += ["warpgroup_mma", "warpgroup_mma_wait"]

# The first of these from 3.9 on.
load_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared

# The warps of the launch load, and two or three groups of four multiply. Registers of each thread:
# of groups, and of all at the launch, before groups take those that are left by the others.
WORKERS_2 = gl.constexpr([4, 4])
REGISTERS_2 = gl.constexpr([240, 240])
WORKERS_3 = gl.constexpr([4, 4, 4])
REGISTERS_3 = gl.constexpr([160, 160, 160])
MAX_REGISTERS = {2: 168, 3: 128}
# Sizes of which the loops over whole tiles need not know whether they are multiples of 16.
UNSPECIALISED = ["num_norms", "num_col_norms", "N", "M", "cols_per_program", "tiles_per_program"]
UNSPECIALISED += ["first_block", "own_stride", "visited_stride"]

_DTYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}
_layouts: dict[tuple[torch.dtype, int, int], gl.NVMMASharedLayout] = {}


def descriptor(
    data: Tensor, num_rows: int, block: int, step: int | None = None
) -> TensorDescriptor:
    """Return what loads `block` of `num_rows` rows of a plane of data (P, N, Dp), zeros behind.

    With a step, so many features at a time.
    """
    P, _, dim = data.shape
    step = step or dim
    key = data.dtype, block, step
    if key not in _layouts:
        layout = gl.NVMMASharedLayout.get_default_for([1, block, step], _DTYPES[data.dtype])
        _layouts[key] = layout
    shape, strides = [P, num_rows, dim], [data.stride(0), dim, 1]
    return TensorDescriptor(data, shape, strides, [1, block, step], _layouts[key])
