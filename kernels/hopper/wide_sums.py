"""The forward of `pair_lse` for wide rows: as pair_sums.py, with products over some features."""

from __future__ import annotations

from torch import Tensor

from spcl_fast.kernels._bound import bound
from spcl_fast.kernels._similarities import (
    FLOAT32_MAX,
    LN_2,
    PlanePairs,
    exponent_scale,
    rounded_sim,
    scalar,
)
from spcl_fast.kernels.hopper._choice import Tiles, compiles
from spcl_fast.kernels.hopper._gluon import (
    MAX_REGISTERS,
    REGISTERS_2,
    UNSPECIALISED,
    WORKERS_2,
    descriptor,
    gl,
    gluon,
)
from spcl_fast.kernels.hopper._steps import (
    GROUPS,
    STEP,
    load_steps,
    new_ring,
    step_products,
)
from spcl_fast.kernels.hopper._sums import (
    add_rows,
    in_threads,
    log_sums_of_columns,
    masked,
    over_threads,
)
from spcl_fast.kernels.hopper._tiles import behind, halves, is_bounded


@gluon.jit
def _sum(
    group: gl.constexpr, ring, first_row, first, tiles, N, M, tau, steps, own_parts, visited_parts,
    P: gl.constexpr, STAGES: gl.constexpr, EXCLUDES_SELF: gl.constexpr, HAS_VISITED: gl.constexpr,
):  # fmt: skip
    """Store sums of exp for the rows and for the columns."""
    COLS: gl.constexpr = ring[0].shape[2]
    BLOCK_M: gl.constexpr = ring[1].shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_M, 16])
    in_tile = gl.arange(0, COLS, layout=gl.SliceLayout(1, layout))
    zero = gl.zeros((COLS, BLOCK_M), gl.float32, layout=layout)
    scale = exponent_scale(tau)
    sums = gl.sum(in_threads(zero), 1)
    for k in range(tiles):
        first_col = ((first + k) * GROUPS + group) * COLS
        dots = step_products(k, group, ring, steps, zero, P, STAGES, OWN_FIRST=True, IS_FINITE=True)
        is_edge = (first_col + COLS > M) | (first_row + BLOCK_M > N)
        if EXCLUDES_SELF:
            is_edge |= (first_col < first_row + BLOCK_M) & (first_row < first_col + COLS)
        if is_edge:
            # By places in the tile: what holds for all tiles would take registers.
            own = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(0, layout))
            own = (own + (first_row - first_col))[None, :]
            dots = masked(dots, own, in_tile[:, None], N - first_col, M - first_col, EXCLUDES_SELF)
        exps = gl.exp2(dots * scale)
        if HAS_VISITED:
            cols = first_col + in_tile
            gl.store(visited_parts + cols, gl.sum(exps, 1), mask=cols < M)
        sums += gl.sum(in_threads(exps), 1)
    own = gl.sum(over_threads(sums), 0)
    in_block = gl.arange(0, BLOCK_M, layout=own.type.layout)
    gl.store(own_parts + in_block, own, mask=in_block < N - first_row)


@gluon.jit
def _sum_shifted(
    group: gl.constexpr, ring, first_row, first, tiles, N, M, tau, steps, own_parts, visited_parts,
    P: gl.constexpr, STAGES: gl.constexpr, EXCLUDES_SELF: gl.constexpr, HAS_VISITED: gl.constexpr,
):  # fmt: skip
    """Store log-sum-exps for the rows and for the columns; here a tile is (owned, visited)."""
    COLS: gl.constexpr = ring[0].shape[2]
    BLOCK_M: gl.constexpr = ring[1].shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLS, 16])
    half: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLS // 2, 16])
    zero = gl.zeros((BLOCK_M, COLS), gl.float32, layout=layout)
    sums = gl.zeros((BLOCK_M,), gl.float32, layout=gl.SliceLayout(1, half))
    shift = sums - FLOAT32_MAX
    for k in range(tiles):
        parts = halves(
            step_products(k, group, ring, steps, zero, P, STAGES, OWN_FIRST=False, IS_FINITE=False)
        )
        for part in gl.static_range(2):
            first_col = ((first + k) * GROUPS + group) * COLS + part * (COLS // 2)
            cols = behind(first_col) + gl.arange(0, COLS // 2, layout=gl.SliceLayout(0, half))
            rows = behind(first_row) + gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, half))
            dots = gl.convert_layout(parts[part], half, assert_trivial=True)
            dots = masked(dots, rows[:, None], cols[None, :], N, M, EXCLUDES_SELF)
            sim = rounded_sim(dots, tau)
            if HAS_VISITED:
                part_j = log_sums_of_columns(sim)
                gl.store(visited_parts + cols, part_j, mask=cols < M)
            shift, sums = add_rows(sim, shift, sums)
    in_block = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, half))
    own = shift + gl.log2(sums) * LN_2
    gl.store(own_parts + in_block, own, mask=in_block < N - first_row)


@gluon.jit
def _multiply(
    group: gl.constexpr, given, P: gl.constexpr, STAGES: gl.constexpr,
    EXCLUDES_SELF: gl.constexpr, HAS_VISITED: gl.constexpr,
):  # fmt: skip
    """Sum over one group's half of every tile."""
    (
        ring, first_row, first, tiles, bounded, N, M, tau, steps, own_parts, own_stride,
        visited_parts,
    ) = given  # fmt: skip
    own_parts += group * own_stride
    if bounded != 0:
        _sum(
            group, ring, first_row, first, tiles, N, M, tau, steps, own_parts, visited_parts, P,
            STAGES, EXCLUDES_SELF, HAS_VISITED,
        )  # fmt: skip
    else:
        _sum_shifted(
            group, ring, first_row, first, tiles, N, M, tau, steps, own_parts, visited_parts, P,
            STAGES, EXCLUDES_SELF, HAS_VISITED,
        )  # fmt: skip


@bound
@gluon.jit(do_not_specialize=[*UNSPECIALISED, "steps"])
def hopper_wide_sums_kernel(
    norms_ptr,
    col_norms_ptr,
    num_norms,
    num_col_norms,
    N,
    M,
    tau,  # number or pointer
    rows_desc,  # of (P, N, DP)
    cols_desc,  # of (P, M, DP), half a tile
    own_ptr,  # (GROUPS programs of a block, own_stride) float32, out: parts of the rows
    visited_ptr,  # (blocks, visited_stride) float32, out: parts of the columns
    first_block,  # of BLOCK_M rows
    tiles_per_program,
    own_stride,
    visited_stride,
    steps,  # of features
    P: gl.constexpr,
    STAGES: gl.constexpr,
    EXCLUDES_SELF: gl.constexpr,
    IS_TRIANGULAR: gl.constexpr,  # each pair is visited for both of its rows
    HAS_VISITED: gl.constexpr,
):
    """As the plain pair_sums_kernel, with a part of the rows for each group."""
    BLOCK_M: gl.constexpr = rows_desc.block_shape[1]
    BLOCK_N: gl.constexpr = cols_desc.block_shape[1] * GROUPS
    tau = scalar(tau)
    bounded = is_bounded(norms_ptr, col_norms_ptr, num_norms, num_col_norms, N, M, tau)
    ring = new_ring(cols_desc, rows_desc, P, STAGES)
    block = first_block + gl.program_id(0)
    first = gl.program_id(1) * tiles_per_program
    last = gl.minimum(first + tiles_per_program, gl.cdiv(M, BLOCK_N))
    if IS_TRIANGULAR:
        first = gl.minimum(gl.maximum(first, block * (BLOCK_M // BLOCK_N)), last)
    own_parts = own_ptr + (gl.program_id(1) * GROUPS).to(gl.int64) * own_stride
    own_parts += gl.program_id(0) * BLOCK_M
    visited_parts = visited_ptr + gl.program_id(0).to(gl.int64) * visited_stride
    given = (
        ring, block * BLOCK_M, first, last - first, bounded, N, M, tau, steps, own_parts,
        own_stride, visited_parts,
    )  # fmt: skip
    loads = cols_desc, rows_desc, ring, block * BLOCK_M, first, last - first, steps
    gl.warp_specialize(
        [
            (load_steps, (loads, P, STAGES)),
            (_multiply, (0, given, P, STAGES, EXCLUDES_SELF, HAS_VISITED)),
            (_multiply, (1, given, P, STAGES, EXCLUDES_SELF, HAS_VISITED)),
        ],
        WORKERS_2,
        REGISTERS_2,
    )


def fills_wide_sums(
    own: Tensor,
    visited: Tensor,
    pairs: PlanePairs,
    first_block: int,
    tiles_per_program: int,
    tiles: Tiles,
) -> bool:
    """Fill the parts of a panel of rows and of the columns, unless the kernel does not compile."""
    rows, cols = pairs.rows, pairs.cols
    return compiles(
        hopper_wide_sums_kernel,
        (own.shape[1] // tiles.block_m, own.shape[0] // tiles.groups),
        *pairs.bounds(),
        descriptor(rows.data, pairs.num_rows, tiles.block_m, STEP),
        descriptor(cols.data, pairs.num_cols, tiles.block_n // GROUPS.value, STEP),
        own,
        visited,
        first_block,
        tiles_per_program,
        own.stride(0),
        pairs.num_cols,
        rows.padded_dim // STEP,
        P=rows.num_planes,
        STAGES=tiles.stages,
        EXCLUDES_SELF=pairs.excludes_self,
        IS_TRIANGULAR=pairs.is_square,
        HAS_VISITED=visited.shape[0] > 0,
        num_warps=4,
        maxnreg=MAX_REGISTERS[GROUPS.value],
    )
