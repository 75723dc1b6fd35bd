"""What a tile adds to the gradient by rows: a tile at a time, or h of one under another."""

from __future__ import annotations

from spcl_fast.kernels._row_weights import h_tile
from spcl_fast.kernels.hopper._gluon import (
    gl,
    gluon,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from spcl_fast.kernels.hopper._tiles import (
    add_weighted,
    begin_products,
    behind,
    plane,
    products,
    tile_at,
)


@gluon.constexpr_function
def spares_registers(P: int, DP: int) -> bool:
    """Return whether addresses are computed for one product at a time, and log2(e) / tau once.

    Otherwise Triton 3.9 spills for two planes of 256 features. The loops of the others here get
    shorter by it; those of two planes of 64 and three of 128 get longer with some version.
    """
    return (P, DP) in ((2, 128), (2, 256), (3, 64))


@gluon.jit
def visit(
    dz, k, tile, group, z_i, z_j, ready, empty, first_row, N, lse_ptr, weight_ptr, M, col_lse_ptr,
    col_weight_ptr, tau, is_edge: gl.constexpr, P: gl.constexpr, STAGES: gl.constexpr,
    PARTS: gl.constexpr, EXCLUDES_SELF: gl.constexpr, IS_BOUNDED: gl.constexpr, scale=None,
):  # fmt: skip
    """Return dz with h_ij z_j of one tile added, some of its columns at a time."""
    ROWS: gl.constexpr = z_i.shape[2]
    COLS: gl.constexpr = z_j.shape[2] // PARTS
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLS, 16])
    in_group = gl.arange(0, ROWS, layout=gl.SliceLayout(1, layout))
    in_part = gl.arange(0, COLS, layout=gl.SliceLayout(0, layout))
    rows = first_row + in_group
    weight_i = gl.load(weight_ptr + rows, mask=rows < N, other=0.0)
    lse_i = weight_i
    if not IS_BOUNDED:
        lse_i = gl.load(lse_ptr + rows, mask=rows < N, other=0.0)
    stage = k % STAGES
    mbarrier.wait(ready.index(stage), (k // STAGES) & 1)
    for part in gl.static_range(PARTS):
        first_col = behind((tile * PARTS + part) * COLS)
        is_col = in_part < M - first_col
        weight_j = gl.load(col_weight_ptr + first_col + in_part, mask=is_col, other=0.0)
        lse_j = weight_j
        if not IS_BOUNDED:
            lse_j = gl.load(col_lse_ptr + first_col + in_part, mask=is_col, other=0.0)
        zero = gl.zeros((ROWS, COLS), gl.float32, layout=layout)
        dots = products(
            z_i, behind(group), z_j, stage, part * COLS, COLS, zero, P, IS_BOUNDED,
            spares_registers(P, z_j.shape[3]),
        )  # fmt: skip
        h_ij = h_tile(
            dots, in_group + (first_row - first_col), in_part, N - first_col, M - first_col,
            weight_i, lse_i, weight_j, lse_j, tau, is_edge, EXCLUDES_SELF=EXCLUDES_SELF,
            IS_BOUNDED=IS_BOUNDED, scale=scale,
        )  # fmt: skip
        dz = add_weighted(h_ij, z_j, stage, part * COLS, dz, P)
    mbarrier.arrive(empty.index(stage), count=1)
    return dz


@gluon.jit
def visit_whole(
    dz, group, z_i, z_j, ready, empty, first_row, N, weight_ptr, M, col_weight_ptr, tau, first,
    lead, diagonal, whole, STAGES: gl.constexpr,
):  # fmt: skip
    """Return dz with h_ij z_j of all whole tiles added: h of one under the product of another."""
    ROWS: gl.constexpr = z_i.shape[2]
    BLOCK_N: gl.constexpr = z_j.shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, dz.type.layout, 2)
    rows = first_row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, layout))
    weight_i = gl.load(weight_ptr + rows, mask=rows < N, other=0.0)
    cols = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, layout))
    zero = gl.zeros((ROWS, BLOCK_N), gl.float32, layout=layout)
    tile = tile_at(0, first, lead, diagonal, whole)
    weight_j = gl.load(col_weight_ptr + tile * BLOCK_N + cols)
    mbarrier.wait(ready.index(0), 0)
    dots = products(z_i, group, z_j, 0, 0, BLOCK_N, zero, 1, IS_FINITE=True)
    h_ij = h_tile(
        dots, rows, cols, N, M, weight_i, weight_i, weight_j, weight_j, tau, is_edge=False,
        EXCLUDES_SELF=False, IS_BOUNDED=True,
    )  # fmt: skip
    h = gl.convert_layout(h_ij.to(z_j.dtype), operand)
    for k in range(1, whole):
        tile = tile_at(k, first, lead, diagonal, whole)
        weight_j = gl.load(col_weight_ptr + tile * BLOCK_N + cols)
        stage, before = k % STAGES, (k - 1) % STAGES
        mbarrier.wait(ready.index(stage), (k // STAGES) & 1)
        next_dots = begin_products(z_i, group, z_j, stage, 0, BLOCK_N, zero, adds=False, P=1)
        next_dz = warpgroup_mma(h, plane(z_j, before, 1, 0), dz, is_async=True)
        dots = warpgroup_mma_wait(num_outstanding=1, deps=(next_dots,))
        h_ij = h_tile(
            dots, rows, cols, N, M, weight_i, weight_i, weight_j, weight_j, tau, is_edge=False,
            EXCLUDES_SELF=False, IS_BOUNDED=True,
        )  # fmt: skip
        part = h_ij.to(z_j.dtype)
        dz, h = warpgroup_mma_wait(num_outstanding=0, deps=(next_dz, h))
        mbarrier.arrive(empty.index(before), count=1)
        h = gl.convert_layout(part, operand)
    last = (whole - 1) % STAGES
    next_dz = warpgroup_mma(h, plane(z_j, last, 1, 0), dz, is_async=True)
    dz = warpgroup_mma_wait(num_outstanding=0, deps=(next_dz,))
    mbarrier.arrive(empty.index(last), count=1)
    return dz
