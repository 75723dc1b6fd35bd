"""The backward of `pair_lse` by rows; kernels/_row_gradient.py launches it."""

from __future__ import annotations

from torch import Tensor

from spcl_fast.kernels._bound import bound, cdiv
from spcl_fast.kernels._row_weights import RowWeights, gradient_scale
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
)
from spcl_fast.kernels.hopper._tiles import (
    is_bounded,
    load_tiles,
    ring_barriers,
    tile_at,
    tile_order,
)
from spcl_fast.kernels.hopper._visits import spares_registers, visit, visit_whole

GROUPS = gl.constexpr(2)


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
                dz = visit_whole(
                    dz, group, z_i, z_j, ready, empty, first_row, N, weight_ptr, M, col_weight_ptr,
                    tau, first, lead, diagonal, whole, STAGES,
                )  # fmt: skip
        else:
            for k in range(whole):
                tile = tile_at(k, first, lead, diagonal, whole)
                dz = visit(
                    dz, k, tile, group, z_i, z_j, ready, empty, first_row, N, lse_ptr, weight_ptr,
                    M, col_lse_ptr, col_weight_ptr, tau, is_edge=False, P=P, STAGES=STAGES,
                    PARTS=PARTS, EXCLUDES_SELF=False, IS_BOUNDED=True, scale=scale,
                )  # fmt: skip
        for k in range(whole, tiles):
            tile = tile_at(k, first, lead, diagonal, whole)
            dz = visit(
                dz, k, tile, group, z_i, z_j, ready, empty, first_row, N, lse_ptr, weight_ptr, M,
                col_lse_ptr, col_weight_ptr, tau, is_edge=True, P=P, STAGES=STAGES, PARTS=PARTS,
                EXCLUDES_SELF=EXCLUDES_SELF, IS_BOUNDED=True, scale=scale,
            )  # fmt: skip
    else:
        for k in range(tiles):
            dz = visit(
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
