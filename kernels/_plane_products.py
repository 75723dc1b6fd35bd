"""Products of planes, of which kernels over pairs are made (what planes are: kernels/_planes.py).

A product of rows is the sum of the products of planes a and b with a + b < P, the smallest first,
accumulated in float32: three planes are as exact as float32, two more exact than tf32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spcl_fast.kernels._planes import plane_rest


@triton.jit
def load_planes(
    ptr, rows, is_row, d, plane, DP: tl.constexpr, BLOCK_D: tl.constexpr, P: tl.constexpr
):
    """Return features d of rows of three planes, (BLOCK, BLOCK_D) each; only the first P are used.

    A row where `is_row` is False is 0, and so are features behind DP.
    """
    offsets = rows.to(tl.int64)[:, None] * DP + d[None, :]
    mask = is_row[:, None]
    if DP // BLOCK_D * BLOCK_D != DP:
        mask &= (d < DP)[None, :]
    first = tl.load(ptr + offsets, mask=mask, other=0.0)
    second, third = first, first
    if P > 1:
        second = tl.load(ptr + plane + offsets, mask=mask, other=0.0)
    if P > 2:
        third = tl.load(ptr + plane + plane + offsets, mask=mask, other=0.0)
    return first, second, third


@triton.jit
def store_planes(ptr, h, offsets, mask, plane, P: tl.constexpr):
    """Store h as planes of a half-precision type."""
    part = h.to(ptr.dtype.element_ty)
    tl.store(ptr + offsets, part, mask=mask)
    if P > 1:
        h -= part.to(tl.float32)
        part = h.to(ptr.dtype.element_ty)
        tl.store(ptr + plane + offsets, part, mask=mask)
        if P > 2:
            h -= part.to(tl.float32)
            tl.store(ptr + plane + plane + offsets, h.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def small_products(a, b, acc, P: tl.constexpr):
    """Return acc + a b^T over all pairs of planes but the first, for planes of a and b."""
    if P == 3:
        acc = tl.dot(a[0], tl.trans(b[2]), acc)
        acc = tl.dot(a[1], tl.trans(b[1]), acc)
        acc = tl.dot(a[2], tl.trans(b[0]), acc)
    if P > 1:
        acc = tl.dot(a[0], tl.trans(b[1]), acc)
        acc = tl.dot(a[1], tl.trans(b[0]), acc)
    return acc


@triton.jit
def products(a, b, P: tl.constexpr, IS_FINITE: tl.constexpr):
    """Return a b^T, (rows of a, rows of b) float32.

    Where a row is infinite, planes after its first would turn infinite products into NaN; unless
    all rows are finite, their products stand alone there.
    """
    zero = tl.zeros((a[0].shape[0], b[0].shape[0]), tl.float32)
    if IS_FINITE or P == 1:
        return tl.dot(a[0], tl.trans(b[0]), small_products(a, b, zero, P))
    first = tl.dot(a[0], tl.trans(b[0]))
    return tl.where(tl.abs(first) < float("inf"), first + small_products(a, b, zero, P), first)


@triton.jit
def products_by_steps(
    a_ptr,
    rows,
    is_row,
    a_plane,
    b_ptr,
    cols,
    is_col,
    b_plane,
    DP: tl.constexpr,
    BLOCK_D: tl.constexpr,
    P: tl.constexpr,
    IS_FINITE: tl.constexpr,
):
    """Return `products` of rows of any length, BLOCK_D features at a time."""
    small = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
    first = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
    for begin in range(0, DP, BLOCK_D):
        d = begin + tl.arange(0, BLOCK_D)
        a = load_planes(a_ptr, rows, is_row, d, a_plane, DP, BLOCK_D, P)
        b = load_planes(b_ptr, cols, is_col, d, b_plane, DP, BLOCK_D, P)
        if IS_FINITE:
            first = tl.dot(a[0], tl.trans(b[0]), small_products(a, b, first, P))
        else:
            small = small_products(a, b, small, P)
            first = tl.dot(a[0], tl.trans(b[0]), first)
    if IS_FINITE or P == 1:
        return first
    return tl.where(tl.abs(first) < float("inf"), first + small, first)


@triton.jit
def add_weighted(h, z, acc, P: tl.constexpr):
    """Return acc + h z, (rows, BLOCK_D), for float32 h (rows, cols), split here, and planes z."""
    part = h.to(z[0].dtype)
    if P == 1:
        return tl.dot(part, z[0], acc)
    rest = plane_rest(h, part)
    second = rest.to(z[0].dtype)
    if P == 3:
        third = plane_rest(rest, second).to(z[0].dtype)
        acc = tl.dot(third, z[0], acc)
        acc = tl.dot(second, z[1], acc)
        acc = tl.dot(part, z[2], acc)
    acc = tl.dot(second, z[0], acc)
    acc = tl.dot(part, z[1], acc)
    return tl.dot(part, z[0], acc)
