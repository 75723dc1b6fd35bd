"""The one kind of matrix that kernels over pairs read: planes of a half-precision type.

    bfloat16, float16    P = 1, the rows themselves
    float32, "highest"   P = 3 planes of bfloat16      x = h0 + h1 + h2, each the bfloat16 of what
    float32, otherwise   P = 2                         the planes before it leave

Planes are (P, N, Dp), contiguous and aligned to 16 bytes, with zeros behind D, so kernels need no
strides but that between planes, which may fit into 32 bits while twice as much does not. The
precision is that of torch.set_float32_matmul_precision. How planes are multiplied is in
kernels/_plane_products.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from spcl_fast.kernels._bound import bound, cdiv
from spcl_fast.kernels._order import Counted, count_rows

# Rows of one program, which writes the largest of their norms and their sum.
ROWS_OF_PLANES = 128
_MAX_BLOCK_D = 64
# By number of planes, the longest rows, in padded features, that other programs hold whole.
_WHOLE_ROW = {1: 256, 2: 256, 3: 128}
# Features per step of longer ones: of one plane, and of several, which are operands together.
STEP, SHORT_STEP = 64, 32


class Planes(NamedTuple):
    """Rows as all kernels read them."""

    data: Tensor  # (P, N, Dp)
    norms: Tensor  # (blocks,) float32, largest norm of each block of rows; inf where it is NaN
    sums: Tensor  # (blocks, Dp + 1) float32, sums of the rows of a block, and of their squares
    dim: int  # D
    first_blocks: int  # of the first matrix

    @property
    def num_planes(self) -> int:
        """Return P."""
        return self.data.shape[0]

    @property
    def padded_dim(self) -> int:
        """Return Dp, a power of two up to 256, above that a multiple of STEP."""
        return self.data.shape[2]

    @property
    def is_wide(self) -> bool:
        """Return whether rows are too long for a program to hold: it reads them step by step."""
        return self.padded_dim > _WHOLE_ROW[self.num_planes]

    @property
    def step(self) -> int:
        """Return how many features of wide rows are read at a time."""
        return STEP if self.num_planes == 1 else SHORT_STEP

    @property
    def stride(self) -> int:
        """Return how many elements lie between two planes."""
        return self.data.stride(0)


def num_planes(dtype: torch.dtype) -> int:
    """Return P for rows of `dtype`."""
    if dtype != torch.float32:
        return 1
    return 3 if torch.get_float32_matmul_precision() == "highest" else 2


def padded_features(dim: int) -> int:
    """Return Dp for rows of `dim` features."""
    if dim <= _WHOLE_ROW[1]:
        return max(1 << (dim - 1).bit_length(), STEP)
    return cdiv(dim, STEP) * STEP


def planes_of(z: Tensor, others: Tensor | None = None, counted: Counted | None = None) -> Planes:
    """Return the planes of the rows of z (N, D), followed by those of others (M, D), in one launch.

    Half-precision rows that are such a matrix already are not copied. The labels of the rows of z
    may be ordered in the same launch.
    """
    dim, padded = z.shape[1], padded_features(z.shape[1])
    blocks = cdiv(z.shape[0], ROWS_OF_PLANES)
    blocks_in_all = blocks
    num_rows = z.shape[0]
    if others is not None:
        blocks_in_all += cdiv(others.shape[0], ROWS_OF_PLANES)
        num_rows += others.shape[0]
    is_one_already = others is None and _is_plane(z, padded)
    if is_one_already:
        data = z.unsqueeze(0)
    else:
        dtype = torch.bfloat16 if z.dtype == torch.float32 else z.dtype
        shape = num_planes(z.dtype), num_rows, padded
        data = torch.empty(shape, dtype=dtype, device=z.device)
    norms = torch.empty(blocks_in_all, dtype=torch.float32, device=z.device)
    sums = torch.empty(blocks_in_all, padded + 1, dtype=torch.float32, device=z.device)
    second = z if others is None else others
    programs, order, has_window = blocks_in_all, (None, None, 0, 0), False
    if counted is not None:
        programs += counted.num_programs
        order, has_window = counted.arguments(), counted.window is not None
    planes_kernel[(programs,)](
        z,
        second,
        data,
        norms,
        sums,
        blocks,
        z.shape[0],
        0 if others is None else others.shape[0],
        dim,
        data.stride(0),
        *z.stride(),
        *second.stride(),
        *order,
        DP=padded,
        ROWS=ROWS_OF_PLANES,
        BLOCK_D=_MAX_BLOCK_D,
        P=data.shape[0],
        IS_COPIED=not is_one_already,
        ORDERS=counted is not None,
        HAS_WINDOW=has_window,
        num_warps=8,
    )
    return Planes(data, norms, sums, dim, blocks)


def _is_plane(z: Tensor, padded: int) -> bool:
    """Return whether rows can be read as they are."""
    is_whole = z.shape[1] == padded and z.is_contiguous() and z.data_ptr() % 16 == 0
    return z.dtype != torch.float32 and is_whole


@triton.jit
def plane_rest(x, part):
    """Return what a plane leaves of x, 0 where the plane is not finite."""
    part = part.to(tl.float32)
    return tl.where(tl.abs(part) < float("inf"), x - part, 0.0)


@triton.jit
def product(x, y):
    """Return x y, rounded: the lanes of a sum would each leave another product of it unrounded."""
    return tl.fma(x, y, tl.zeros_like(x))


@bound
@triton.jit(do_not_specialize=["window_bits"])
def planes_kernel(
    first_ptr,  # (N, D)
    second_ptr,  # (M, D)
    data_ptr,  # (P, N + M, DP), out
    norms_ptr,  # (blocks,) float32, out
    sums_ptr,  # (blocks, DP + 1) float32, out
    first_blocks,  # of the first matrix
    N,
    M,
    D,
    plane,  # stride
    stride_n,
    stride_d,
    second_stride_n,
    second_stride_d,
    labels_ptr,  # (N,), or None
    side_ptr,  # (3, N), out, or None
    window_bits,
    label_stride,
    DP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    P: tl.constexpr,
    IS_COPIED: tl.constexpr,
    ORDERS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """Write the planes, the largest norm and the sums of ROWS rows, or order some labels."""
    block = tl.program_id(0)
    num_blocks = first_blocks + tl.cdiv(M, ROWS)
    if block < num_blocks:
        _write_planes(
            block, first_ptr, second_ptr, data_ptr, norms_ptr, sums_ptr, first_blocks, N, M, D,
            plane, stride_n, stride_d, second_stride_n, second_stride_d, DP, ROWS, BLOCK_D, P,
            IS_COPIED,
        )  # fmt: skip
    elif ORDERS:
        count_rows(
            block - num_blocks, labels_ptr, labels_ptr, side_ptr, window_bits, N, N, label_stride,
            label_stride, N, IS_SQUARE=True, HAS_WINDOW=HAS_WINDOW,
        )  # fmt: skip


@triton.jit
def _write_planes(
    block, first_ptr, second_ptr, data_ptr, norms_ptr, sums_ptr, first_blocks, N, M, D, plane,
    stride_n, stride_d, second_stride_n, second_stride_d, DP: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr, P: tl.constexpr, IS_COPIED: tl.constexpr,
):  # fmt: skip
    is_second = block >= first_blocks
    row = tl.where(is_second, block - first_blocks, block) * ROWS + tl.arange(0, ROWS)
    num_rows = tl.where(is_second, M, N)
    is_row = row < num_rows
    place = (row + tl.where(is_second, N, 0)).to(tl.int64)
    squares = tl.zeros((ROWS,), tl.float32)
    for begin in range(0, DP, BLOCK_D):
        d = begin + tl.arange(0, BLOCK_D)
        mask = is_row[:, None] & (d < D)[None, :]
        wide_row, wide_d = row.to(tl.int64)[:, None], d.to(tl.int64)[None, :]
        if is_second:
            offsets = wide_row * second_stride_n + wide_d * second_stride_d
            x = tl.load(second_ptr + offsets, mask=mask, other=0.0)
        else:
            offsets = wide_row * stride_n + wide_d * stride_d
            x = tl.load(first_ptr + offsets, mask=mask, other=0.0)
        wide = x.to(tl.float32)
        squares += tl.sum(product(wide, wide), 1)
        tl.store(sums_ptr + block * (DP + 1) + d, tl.sum(wide, 0))
        if IS_COPIED:
            out = data_ptr + place[:, None] * DP + d[None, :]
            part = x.to(data_ptr.dtype.element_ty)
            tl.store(out, part, mask=is_row[:, None])
            if P > 1:
                rest = plane_rest(wide, part)
                part = rest.to(data_ptr.dtype.element_ty)
                tl.store(out + plane, part, mask=is_row[:, None])
                if P > 2:
                    part = plane_rest(rest, part).to(data_ptr.dtype.element_ty)
                    tl.store(out + plane + plane, part, mask=is_row[:, None])
    tl.store(sums_ptr + block * (DP + 1) + DP, tl.sum(squares, 0))
    norm = tl.sqrt(squares)
    tl.store(norms_ptr + block, tl.max(tl.where(norm < float("inf"), norm, float("inf")), 0))
