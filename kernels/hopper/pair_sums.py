"""The forward of `pair_lse`: sums of exp(sim) by tiles; kernels/_pair_sums.py launches it."""

from __future__ import annotations

from torch import Tensor

from spcl_fast.kernels._bound import bound
from spcl_fast.kernels._similarities import PlanePairs, exponent_scale, scalar
from spcl_fast.kernels.hopper._choice import Tiles, compiles
from spcl_fast.kernels.hopper._gluon import (
    MAX_REGISTERS,
    REGISTERS_2,
    REGISTERS_3,
    UNSPECIALISED,
    WORKERS_2,
    WORKERS_3,
    descriptor,
    gl,
    gluon,
    mbarrier,
)
from spcl_fast.kernels.hopper._powers import exp2
from spcl_fast.kernels.hopper._shifted_sums import store_own, sum_shifted
from spcl_fast.kernels.hopper._sums import in_threads, masked, over_threads
from spcl_fast.kernels.hopper._tiles import (
    behind,
    is_bounded,
    load_tiles,
    products,
    ring_barriers,
    tile_at,
    tile_order,
)


@gluon.jit
def _exps(
    k, z_i, z_j, ready, empty, first_row, first_col, in_tile, N, M, scale, zero, P: gl.constexpr,
    STAGES: gl.constexpr, IS_EDGE: gl.constexpr, EXCLUDES_SELF: gl.constexpr,
    FMA_EXPS: gl.constexpr,
):  # fmt: skip
    """Return exp(sim) of tile number k."""
    stage = k % STAGES
    mbarrier.wait(ready.index(stage), (k // STAGES) & 1)
    dots = products(z_j, stage, z_i, behind(0), 0, z_i.shape[2], zero, P, IS_FINITE=True)
    mbarrier.arrive(empty.index(stage), count=1)
    if IS_EDGE:
        # By places in the tile: what holds for all tiles would take registers.
        own = gl.arange(0, z_i.shape[2], layout=gl.SliceLayout(0, dots.type.layout))
        own = (own + (first_row - first_col))[None, :]
        dots = masked(dots, own, in_tile[:, None], N - first_col, M - first_col, EXCLUDES_SELF)
    return exp2(dots, scale, FMA_EXPS)


@gluon.jit
def _sum(
    group: gl.constexpr, GROUPS: gl.constexpr, z_i, z_j, ready, empty, first_row, first, lead,
    diagonal, whole, tiles, N, M, tau, own_ptr, own_stride, visited_parts, P: gl.constexpr,
    STAGES: gl.constexpr, EXCLUDES_SELF: gl.constexpr, HAS_VISITED: gl.constexpr,
    FMA_EXPS: gl.constexpr,
):  # fmt: skip
    """Store sums of exp for the rows and for the columns."""
    BLOCK_M: gl.constexpr = z_i.shape[2]
    BLOCK_N: gl.constexpr = z_j.shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_M, 16])
    in_tile = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(1, layout))
    zero = gl.zeros((BLOCK_N, BLOCK_M), gl.float32, layout=layout)
    scale = exponent_scale(tau)
    sums = gl.sum(in_threads(zero), 1)
    for k in range(group, whole, GROUPS):
        first_col = tile_at(k, first, lead, diagonal, whole) * BLOCK_N
        exps = _exps(
            k, z_i, z_j, ready, empty, first_row, first_col, in_tile, N, M, scale, zero, P, STAGES,
            IS_EDGE=False, EXCLUDES_SELF=False, FMA_EXPS=FMA_EXPS,
        )  # fmt: skip
        sums += gl.sum(in_threads(exps), 1)
        if HAS_VISITED:
            gl.store(visited_parts + first_col + in_tile, gl.sum(exps, 1))
    for k in range(whole + (group + GROUPS - whole % GROUPS) % GROUPS, tiles, GROUPS):
        tile = tile_at(k, first, lead, diagonal, whole)
        first_col = tile * BLOCK_N
        exps = _exps(
            k, z_i, z_j, ready, empty, first_row, first_col, in_tile, N, M, scale, zero, P, STAGES,
            IS_EDGE=True, EXCLUDES_SELF=EXCLUDES_SELF, FMA_EXPS=0,
        )  # fmt: skip
        sums += gl.sum(in_threads(exps), 1)
        if HAS_VISITED:
            cols = first_col + in_tile
            gl.store(visited_parts + cols, gl.sum(exps, 1), mask=cols < M)
    own = gl.sum(over_threads(sums), 0)
    store_own(group, GROUPS, own, first_row, N, own_ptr, own_stride)


@gluon.jit
def _multiply(
    group: gl.constexpr, GROUPS: gl.constexpr, given, P: gl.constexpr, STAGES: gl.constexpr,
    EXCLUDES_SELF: gl.constexpr, HAS_VISITED: gl.constexpr, FMA_EXPS: gl.constexpr,
):  # fmt: skip
    """Sum over every tile that is one group's: they take turns."""
    (
        z_i, z_j, ready, empty, block, first, lead, diagonal, whole, tiles, bounded, N, M, tau,
        own_ptr, own_stride, visited_ptr, visited_stride,
    ) = given  # fmt: skip
    BLOCK_M: gl.constexpr = z_i.shape[2]
    first_row = block * BLOCK_M
    visited_parts = visited_ptr + gl.program_id(0).to(gl.int64) * visited_stride
    mbarrier.wait(ready.index(STAGES), 0)
    if bounded != 0:
        _sum(
            group, GROUPS, z_i, z_j, ready, empty, first_row, first, lead, diagonal, whole, tiles,
            N, M, tau, own_ptr, own_stride, visited_parts, P, STAGES, EXCLUDES_SELF, HAS_VISITED,
            FMA_EXPS,
        )  # fmt: skip
    else:
        sum_shifted(
            group, GROUPS, z_i, z_j, ready, empty, first_row, first, whole, tiles, N, M, tau,
            own_ptr, own_stride, visited_parts, P, STAGES, EXCLUDES_SELF, HAS_VISITED,
        )  # fmt: skip


@bound
@gluon.jit(do_not_specialize=UNSPECIALISED)
def hopper_pair_sums_kernel(
    norms_ptr,
    col_norms_ptr,
    num_norms,
    num_col_norms,
    N,
    M,
    tau,  # number or pointer
    rows_desc,  # of (P, N, DP)
    cols_desc,  # of (P, M, DP)
    own_ptr,  # (GROUPS programs of a block, own_stride) float32, out: parts of the rows
    visited_ptr,  # (blocks, visited_stride) float32, out: parts of the columns
    first_block,  # of BLOCK_M rows
    tiles_per_program,
    own_stride,
    visited_stride,
    P: gl.constexpr,
    STAGES: gl.constexpr,
    GROUPS: gl.constexpr,  # 2 or 3
    EXCLUDES_SELF: gl.constexpr,
    IS_TRIANGULAR: gl.constexpr,  # each pair is visited for both of its rows
    HAS_VISITED: gl.constexpr,
    FMA_EXPS: gl.constexpr,  # of 16 exponentials
):
    """As the plain pair_sums_kernel, with a part of the rows for each group."""
    BLOCK_M: gl.constexpr = rows_desc.block_shape[1]
    BLOCK_N: gl.constexpr = cols_desc.block_shape[1]
    DP: gl.constexpr = cols_desc.block_shape[2]
    dtype: gl.constexpr = cols_desc.dtype
    gl.static_assert(STAGES % GROUPS == 0)
    tau = scalar(tau)
    bounded = is_bounded(norms_ptr, col_norms_ptr, num_norms, num_col_norms, N, M, tau)
    z_i = gl.allocate_shared_memory(dtype, [P, 1, BLOCK_M, DP], rows_desc.layout)
    z_j = gl.allocate_shared_memory(dtype, [STAGES * P, 1, BLOCK_N, DP], cols_desc.layout)
    ready, empty = ring_barriers(STAGES, 1, 1)
    block = first_block + gl.program_id(0)
    first = gl.program_id(1) * tiles_per_program
    last = gl.minimum(first + tiles_per_program, gl.cdiv(M, BLOCK_N))
    if IS_TRIANGULAR:
        first = gl.minimum(gl.maximum(first, block * (BLOCK_M // BLOCK_N)), last)
    lead, diagonal, whole = 0, 0, 0
    if (bounded != 0) & ((block + 1) * BLOCK_M <= N):
        first_diagonal = first
        last_diagonal = first
        if EXCLUDES_SELF:
            first_diagonal = block * (BLOCK_M // BLOCK_N)
            last_diagonal = (block + 1) * (BLOCK_M // BLOCK_N)
        lead, diagonal, whole = tile_order(first, last, first_diagonal, last_diagonal, M, BLOCK_N)
    tiles = last - first
    given = (
        z_i, z_j, ready, empty, block, first, lead, diagonal, whole, tiles, bounded, N, M, tau,
        own_ptr, own_stride, visited_ptr, visited_stride,
    )  # fmt: skip
    loads = (
        rows_desc, cols_desc, z_i, z_j, ready, empty, block * BLOCK_M, first, lead, diagonal, whole,
        tiles,
    )  # fmt: skip
    if GROUPS == 2:
        gl.warp_specialize(
            [
                (load_tiles, (loads, P, STAGES)),
                (_multiply, (0, 2, given, P, STAGES, EXCLUDES_SELF, HAS_VISITED, FMA_EXPS)),
                (_multiply, (1, 2, given, P, STAGES, EXCLUDES_SELF, HAS_VISITED, FMA_EXPS)),
            ],
            WORKERS_2,
            REGISTERS_2,
        )
    else:
        gl.warp_specialize(
            [
                (load_tiles, (loads, P, STAGES)),
                (_multiply, (0, 3, given, P, STAGES, EXCLUDES_SELF, HAS_VISITED, FMA_EXPS)),
                (_multiply, (1, 3, given, P, STAGES, EXCLUDES_SELF, HAS_VISITED, FMA_EXPS)),
                (_multiply, (2, 3, given, P, STAGES, EXCLUDES_SELF, HAS_VISITED, FMA_EXPS)),
            ],
            WORKERS_3,
            REGISTERS_3,
        )


def fills_sums(
    own: Tensor,
    visited: Tensor,
    pairs: PlanePairs,
    first_block: int,
    tiles_per_program: int,
    tiles: Tiles,
) -> bool:
    """Fill the parts of a panel of rows and of the columns, unless the kernel does not compile."""
    blocks = own.shape[1] // tiles.block_m
    return compiles(
        hopper_pair_sums_kernel,
        (blocks, own.shape[0] // tiles.groups),
        *pairs.bounds(),
        descriptor(pairs.rows.data, pairs.num_rows, tiles.block_m),
        descriptor(pairs.cols.data, pairs.num_cols, tiles.block_n),
        own,
        visited,
        first_block,
        tiles_per_program,
        own.stride(0),
        pairs.num_cols,
        P=pairs.rows.num_planes,
        STAGES=tiles.stages,
        GROUPS=tiles.groups,
        EXCLUDES_SELF=pairs.excludes_self,
        IS_TRIANGULAR=pairs.is_square,
        HAS_VISITED=visited.shape[0] > 0,
        FMA_EXPS=tiles.fma_exps,
        num_warps=4,
        maxnreg=MAX_REGISTERS[tiles.groups],
    )
