"""A panel of h for the backward of wide rows; kernels/_wide_gradient.py launches it."""

from __future__ import annotations

from torch import Tensor

from spcl_fast.kernels._bound import bound, cdiv
from spcl_fast.kernels._row_weights import RowWeights, gradient_scale, h_tile
from spcl_fast.kernels._similarities import PlanePairs, scalar
from spcl_fast.kernels.hopper._choice import Tiles, compiles
from spcl_fast.kernels.hopper._gluon import (
    MAX_REGISTERS,
    REGISTERS_2,
    WORKERS_2,
    descriptor,
    gl,
    gluon,
    load_tile,
    mbarrier,
    warpgroup_mma_wait,
)
from spcl_fast.kernels.hopper._tiles import add_product, is_bounded

GROUPS = gl.constexpr(2)
STEP = 64  # features
# M says how wide stores may be.
_UNSPECIALISED = ["num_norms", "num_col_norms", "N", "first_row", "num_blocks", "steps"]


@gluon.jit
def _load_steps(given, STAGES: gl.constexpr):
    """Load some features after the others, of the rows of all groups and of the columns."""
    rows_desc, cols_desc, z_i, z_j, ready, empty, first_row, first_col, steps = given
    ROWS: gl.constexpr = rows_desc.block_shape[1]
    COLS: gl.constexpr = cols_desc.block_shape[1]
    STEP: gl.constexpr = cols_desc.block_shape[2]
    for k in range(steps):
        stage = k % STAGES
        mbarrier.wait(empty.index(stage), ((k // STAGES) & 1) ^ 1)
        mbarrier.expect(ready.index(stage), (GROUPS * ROWS + COLS) * STEP * 2)
        for group in gl.static_range(GROUPS):
            place = [0, first_row + group * ROWS, k * STEP]
            load_tile(rows_desc, place, ready.index(stage), z_i.index(stage * GROUPS + group))
        load_tile(cols_desc, [0, first_col, k * STEP], ready.index(stage), z_j.index(stage))


@gluon.jit
def _products(group: gl.constexpr, z_i, z_j, ready, empty, steps, STAGES: gl.constexpr):
    """Return z_i . z_j of the rows of one group."""
    ROWS: gl.constexpr = z_i.shape[2]
    COLS: gl.constexpr = z_j.shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLS, 16])
    dots = gl.zeros((ROWS, COLS), gl.float32, layout=layout)
    for k in range(steps):
        stage, before = k % STAGES, (k + STAGES - 1) % STAGES
        mbarrier.wait(ready.index(stage), (k // STAGES) & 1)
        dots = add_product(z_i, stage * GROUPS + group, z_j, stage, dots)
        dots = warpgroup_mma_wait(num_outstanding=1, deps=(dots,))
        mbarrier.arrive(empty.index(before), count=1, pred=k > 0)
    return warpgroup_mma_wait(num_outstanding=0, deps=(dots,))


@gluon.jit
def _weigh(
    group: gl.constexpr, given, STAGES: gl.constexpr,
    EXCLUDES_SELF: gl.constexpr, IS_SCALED: gl.constexpr, IS_BOUNDED: gl.constexpr,
):  # fmt: skip
    """Store h for the rows of one group."""
    (
        z_i, z_j, ready, empty, first_row, first_in_panel, first_col, steps, N, M, tau, lse_ptr,
        weight_ptr, col_lse_ptr, col_weight_ptr, bound_ptr, h_ptr,
    ) = given  # fmt: skip
    ROWS: gl.constexpr = z_i.shape[2]
    COLS: gl.constexpr = z_j.shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLS, 16])
    dots = _products(group, z_i, z_j, ready, empty, steps, STAGES)
    first = first_row + group * ROWS
    rows = first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, layout))
    cols = first_col + gl.arange(0, COLS, layout=gl.SliceLayout(0, layout))
    weight_i = gl.load(weight_ptr + rows, mask=rows < N, other=0.0)
    weight_j = gl.load(col_weight_ptr + cols, mask=cols < M, other=0.0)
    lse_i, lse_j = weight_i, weight_j
    if not IS_BOUNDED:
        lse_i = gl.load(lse_ptr + rows, mask=rows < N, other=0.0)
        lse_j = gl.load(col_lse_ptr + cols, mask=cols < M, other=0.0)
    is_edge = False  # pairs outside are not stored
    if EXCLUDES_SELF:
        is_edge = (first_col < first + ROWS) & (first < first_col + COLS)
    h_ij = h_tile(
        dots, rows, cols, N, M, weight_i, lse_i, weight_j, lse_j, tau, is_edge,
        EXCLUDES_SELF=EXCLUDES_SELF, IS_BOUNDED=IS_BOUNDED,
    )  # fmt: skip
    if not IS_SCALED:
        h_ij *= 1.0 / (tau * gradient_scale(gl.load(bound_ptr)))
    in_panel = first_in_panel + group * ROWS + (rows - first)
    offsets = in_panel.to(gl.int64)[:, None] * M + cols[None, :]
    mask = (rows < N)[:, None] & (cols < M)[None, :]
    gl.store(h_ptr + offsets, h_ij.to(h_ptr.dtype.element_ty), mask=mask)


@gluon.jit
def _weigh_bounded(
    group: gl.constexpr, bounded, given, STAGES: gl.constexpr,
    EXCLUDES_SELF: gl.constexpr, IS_SCALED: gl.constexpr,
):  # fmt: skip
    if bounded != 0:
        _weigh(group, given, STAGES, EXCLUDES_SELF, IS_SCALED, True)
    else:
        _weigh(group, given, STAGES, EXCLUDES_SELF, IS_SCALED, False)


@bound
@gluon.jit(do_not_specialize=_UNSPECIALISED)
def hopper_h_panel_kernel(
    norms_ptr,
    col_norms_ptr,
    num_norms,
    num_col_norms,
    N,
    M,
    tau,  # number or pointer
    rows_desc,  # of (1, N, DP)
    cols_desc,  # of (1, M, DP)
    lse_ptr,  # (N,) float32
    weight_ptr,  # (N,) float32
    col_lse_ptr,  # (M,) float32
    col_weight_ptr,  # (M,) float32
    bound_ptr,  # () float32
    h_ptr,  # (rows of the panel, M), out
    first_row,  # of the panel
    num_blocks,  # of rows of the panel
    steps,  # of features
    STAGES: gl.constexpr,
    EXCLUDES_SELF: gl.constexpr,
    IS_SCALED: gl.constexpr,
):
    """As the plain kernel in kernels/_wide_gradient.py."""
    ROWS: gl.constexpr = rows_desc.block_shape[1]
    COLS: gl.constexpr = cols_desc.block_shape[1]
    STEP: gl.constexpr = cols_desc.block_shape[2]
    dtype: gl.constexpr = cols_desc.dtype
    tau = scalar(tau)
    bounded = is_bounded(norms_ptr, col_norms_ptr, num_norms, num_col_norms, N, M, tau)
    shape_i: gl.constexpr = [STAGES * GROUPS, 1, ROWS, STEP]
    z_i = gl.allocate_shared_memory(dtype, shape_i, rows_desc.layout)
    z_j = gl.allocate_shared_memory(dtype, [STAGES, 1, COLS, STEP], cols_desc.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(empty.index(i), count=GROUPS)
    first_in_panel = gl.program_id(0) % num_blocks * (GROUPS * ROWS)
    first_col = gl.program_id(0) // num_blocks * COLS
    first_row += first_in_panel
    loads = rows_desc, cols_desc, z_i, z_j, ready, empty, first_row, first_col, steps
    given = (
        z_i, z_j, ready, empty, first_row, first_in_panel, first_col, steps, N, M, tau, lse_ptr,
        weight_ptr, col_lse_ptr, col_weight_ptr, bound_ptr, h_ptr,
    )  # fmt: skip
    gl.warp_specialize(
        [
            (_load_steps, (loads, STAGES)),
            (_weigh_bounded, (0, bounded, given, STAGES, EXCLUDES_SELF, IS_SCALED)),
            (_weigh_bounded, (1, bounded, given, STAGES, EXCLUDES_SELF, IS_SCALED)),
        ],
        WORKERS_2,
        REGISTERS_2,
    )


def fills_panel(
    h: Tensor,  # (1, rows of the panel, M), out
    first_row: int,
    pairs: PlanePairs,
    weights: RowWeights,
    tiles: Tiles,
    *,
    is_scaled: bool,
) -> bool:
    """Fill a panel of h, unless the kernel does not compile."""
    blocks = cdiv(h.shape[1], tiles.block_m)
    rows, cols = pairs.rows, pairs.cols
    return compiles(
        hopper_h_panel_kernel,
        (blocks * cdiv(pairs.num_cols, tiles.block_n),),
        *pairs.bounds(),
        descriptor(rows.data, pairs.num_rows, tiles.block_m // GROUPS.value, STEP),
        descriptor(cols.data, pairs.num_cols, tiles.block_n, STEP),
        *weights,
        h,
        first_row,
        blocks,
        rows.padded_dim // STEP,
        STAGES=tiles.stages,
        EXCLUDES_SELF=pairs.excludes_self,
        IS_SCALED=is_scaled,
        num_warps=4,
        maxnreg=MAX_REGISTERS[GROUPS.value],
    )
