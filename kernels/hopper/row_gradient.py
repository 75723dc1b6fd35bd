"""The backward of `pair_lse` by rows; kernels/_row_gradient.py launches it."""

from __future__ import annotations

from torch import Tensor

from spcl_fast.kernels._bound import bound, cdiv
from spcl_fast.kernels._row_weights import RowWeights, gradient_scale, h_tile
from spcl_fast.kernels._similarities import PlanePairs, exponent_scale, scalar
from spcl_fast.kernels.hopper._choice import Tiles, compiles
from spcl_fast.kernels.hopper._gluon import (
    MAX_REGISTERS,
    REGISTERS_2,
    UNSPECIALISED,
    WORKERS_2,
    descriptor,
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
    is_bounded,
    load_tiles,
    plane,
    products,
    ring_barriers,
    tile_at,
    tile_order,
)

GROUPS = gl.constexpr(2)


@gluon.constexpr_function
def spares_registers(P: int, DP: int) -> bool:
    """Return whether addresses are computed for one product at a time, and log2(e) / tau once.

    Otherwise Triton 3.9 spills for two planes of 256 features. The loops of the others here get
    shorter by it; those of two planes of 64 and three of 128 get longer with some version.
    """
    return (P, DP) in ((2, 128), (2, 256), (3, 64))


@gluon.jit
def _visit(
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
def _visit_whole(
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


@gluon.jit
def _multiply(
    group: gl.constexpr, z_i, z_j, ready, empty, first, lead, diagonal, whole, tiles, bounded, N, M,
    tau, lse_ptr, weight_ptr, col_lse_ptr, col_weight_ptr, bound_ptr, dz_ptr, D, P: gl.constexpr,
    STAGES: gl.constexpr, PARTS: gl.constexpr, SHIFTED_PARTS: gl.constexpr,
    EXCLUDES_SELF: gl.constexpr,
):  # fmt: skip
    """dz_i for the rows of one group."""
    ROWS: gl.constexpr = z_i.shape[2]
    DP: gl.constexpr = z_i.shape[3]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DP, 16])
    first_row = (gl.program_id(0) * GROUPS + group) * ROWS
    scale = None
    if spares_registers(P, DP):
        scale = exponent_scale(tau)
    dz = gl.zeros((ROWS, DP), gl.float32, layout=layout)
    mbarrier.wait(ready.index(STAGES), 0)
    if bounded != 0:
        if P == 1:
            if whole > 0:
                dz = _visit_whole(
                    dz, group, z_i, z_j, ready, empty, first_row, N, weight_ptr, M, col_weight_ptr,
                    tau, first, lead, diagonal, whole, STAGES,
                )  # fmt: skip
        else:
            for k in range(whole):
                tile = tile_at(k, first, lead, diagonal, whole)
                dz = _visit(
                    dz, k, tile, group, z_i, z_j, ready, empty, first_row, N, lse_ptr, weight_ptr,
                    M, col_lse_ptr, col_weight_ptr, tau, is_edge=False, P=P, STAGES=STAGES,
                    PARTS=PARTS, EXCLUDES_SELF=False, IS_BOUNDED=True, scale=scale,
                )  # fmt: skip
        for k in range(whole, tiles):
            tile = tile_at(k, first, lead, diagonal, whole)
            dz = _visit(
                dz, k, tile, group, z_i, z_j, ready, empty, first_row, N, lse_ptr, weight_ptr, M,
                col_lse_ptr, col_weight_ptr, tau, is_edge=True, P=P, STAGES=STAGES, PARTS=PARTS,
                EXCLUDES_SELF=EXCLUDES_SELF, IS_BOUNDED=True, scale=scale,
            )  # fmt: skip
    else:
        for k in range(tiles):
            dz = _visit(
                dz, k, first + k, group, z_i, z_j, ready, empty, first_row, N, lse_ptr, weight_ptr,
                M, col_lse_ptr, col_weight_ptr, tau, is_edge=True, P=P, STAGES=STAGES,
                PARTS=SHIFTED_PARTS, EXCLUDES_SELF=EXCLUDES_SELF, IS_BOUNDED=False,
            )  # fmt: skip
    dz *= 1.0 / (tau * gradient_scale(gl.load(bound_ptr)))
    rows = gl.arange(0, ROWS, layout=gl.SliceLayout(1, layout))
    d = gl.arange(0, DP, layout=gl.SliceLayout(0, layout))
    start = (gl.program_id(1).to(gl.int64) * N + first_row) * D
    mask = (rows < N - first_row)[:, None] & (d < D)[None, :]
    offsets = rows[:, None] * D + d[None, :]
    gl.store(dz_ptr + start + offsets, dz.to(dz_ptr.dtype.element_ty), mask=mask)


@bound
@gluon.jit(do_not_specialize=UNSPECIALISED)
def hopper_row_gradient_kernel(
    norms_ptr,
    col_norms_ptr,
    num_norms,
    num_col_norms,
    N,
    M,
    tau,  # number or pointer
    rows_desc,  # of (P, N, DP)
    cols_desc,  # of (P, M, DP)
    lse_ptr,  # (N,) float32
    weight_ptr,  # (N,) float32
    col_lse_ptr,  # (M,) float32
    col_weight_ptr,  # (M,) float32
    bound_ptr,  # () float32
    dz_ptr,  # (splits, N, D), out
    cols_per_program,  # a multiple of the columns of a tile
    D,
    P: gl.constexpr,
    STAGES: gl.constexpr,
    PARTS: gl.constexpr,
    SHIFTED_PARTS: gl.constexpr,
    EXCLUDES_SELF: gl.constexpr,
):
    """dz_i = sum_j h_ij z_j / tau over some columns j, for the rows i of all groups."""
    ROWS: gl.constexpr = rows_desc.block_shape[1]
    BLOCK_N: gl.constexpr = cols_desc.block_shape[1]
    BLOCK_M: gl.constexpr = GROUPS * ROWS
    DP: gl.constexpr = cols_desc.block_shape[2]
    dtype: gl.constexpr = cols_desc.dtype
    tau = scalar(tau)
    bounded = is_bounded(norms_ptr, col_norms_ptr, num_norms, num_col_norms, N, M, tau)
    z_i = gl.allocate_shared_memory(dtype, [GROUPS * P, 1, ROWS, DP], rows_desc.layout)
    z_j = gl.allocate_shared_memory(dtype, [STAGES * P, 1, BLOCK_N, DP], cols_desc.layout)
    ready, empty = ring_barriers(STAGES, GROUPS, 1)
    first = gl.program_id(1) * (cols_per_program // BLOCK_N)
    last = gl.minimum(first + cols_per_program // BLOCK_N, gl.cdiv(M, BLOCK_N))
    lead, diagonal, whole = 0, 0, 0
    if bounded != 0:
        first_diagonal = first
        last_diagonal = first
        if EXCLUDES_SELF:
            first_row = gl.program_id(0) * BLOCK_M
            first_diagonal = first_row // BLOCK_N
            last_diagonal = (first_row + BLOCK_M + BLOCK_N - 1) // BLOCK_N
        lead, diagonal, whole = tile_order(first, last, first_diagonal, last_diagonal, M, BLOCK_N)
    tiles = last - first
    loads = (
        rows_desc, cols_desc, z_i, z_j, ready, empty, gl.program_id(0) * BLOCK_M, first, lead,
        diagonal, whole, tiles,
    )  # fmt: skip
    gl.warp_specialize(
        [
            (load_tiles, (loads, P, STAGES)),
            (_multiply, (
                0, z_i, z_j, ready, empty, first, lead, diagonal, whole, tiles, bounded, N, M, tau,
                lse_ptr, weight_ptr, col_lse_ptr, col_weight_ptr, bound_ptr, dz_ptr, D, P, STAGES,
                PARTS, SHIFTED_PARTS, EXCLUDES_SELF,
            )),
            (_multiply, (
                1, z_i, z_j, ready, empty, first, lead, diagonal, whole, tiles, bounded, N, M, tau,
                lse_ptr, weight_ptr, col_lse_ptr, col_weight_ptr, bound_ptr, dz_ptr, D, P, STAGES,
                PARTS, SHIFTED_PARTS, EXCLUDES_SELF,
            )),
        ],
        WORKERS_2,
        REGISTERS_2,
    )  # fmt: skip


def fills_row_gradient(
    parts: Tensor, pairs: PlanePairs, weights: RowWeights, cols_per_program: int, tiles: Tiles
) -> bool:
    """Fill parts whose sum is dz, (splits, N, D), unless the kernel does not compile."""
    return compiles(
        hopper_row_gradient_kernel,
        (cdiv(pairs.num_rows, tiles.block_m), len(parts)),
        *pairs.bounds(),
        descriptor(pairs.rows.data, pairs.num_rows, tiles.block_m // GROUPS.value),
        descriptor(pairs.cols.data, pairs.num_cols, tiles.block_n),
        *weights,
        parts,
        cols_per_program,
        pairs.rows.dim,
        P=pairs.rows.num_planes,
        STAGES=tiles.stages,
        PARTS=tiles.parts,
        SHIFTED_PARTS=tiles.shifted_parts,
        EXCLUDES_SELF=pairs.excludes_self,
        num_warps=4,
        maxnreg=MAX_REGISTERS[GROUPS.value],
    )
