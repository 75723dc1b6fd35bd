"""A panel of h for the backward of wide rows; kernels/_wide_gradient.py launches it."""

from __future__ import annotations

from torch import Tensor

from spcl_fast.kernels._bound import bound, cdiv
from spcl_fast.kernels._plane_products import store_planes
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
)
from spcl_fast.kernels.hopper._steps import (
    GROUPS,
    STEP,
    load_steps,
    new_ring,
    step_products,
)
from spcl_fast.kernels.hopper._tiles import behind, is_bounded, quarters

# M says how wide stores may be.
_UNSPECIALISED = ["num_norms", "num_col_norms", "N", "h_plane", "first_row"]
_UNSPECIALISED += ["num_blocks", "steps"]


@gluon.jit
def _weigh(
    group: gl.constexpr, given, P: gl.constexpr, STAGES: gl.constexpr,
    EXCLUDES_SELF: gl.constexpr, IS_SCALED: gl.constexpr, IS_BOUNDED: gl.constexpr,
):  # fmt: skip
    """Store h for the rows of one group."""
    (
        ring, first_row, first_in_panel, first_col, steps, N, M, tau, lse_ptr, weight_ptr,
        col_lse_ptr, col_weight_ptr, bound_ptr, h_ptr, h_plane,
    ) = given  # fmt: skip
    ROWS: gl.constexpr = ring[0].shape[2]
    COLS: gl.constexpr = ring[1].shape[2]
    PART: gl.constexpr = COLS // 4
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLS, 16])
    part_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, PART, 16])
    zero = gl.zeros((ROWS, COLS), gl.float32, layout=layout)
    dots = step_products(
        0, group, ring, steps, zero, P, STAGES, OWN_FIRST=True, IS_FINITE=IS_BOUNDED
    )
    parts = quarters(dots)
    first = first_row + group * ROWS
    in_group = gl.arange(0, ROWS, layout=gl.SliceLayout(1, part_layout))
    in_part = gl.arange(0, PART, layout=gl.SliceLayout(0, part_layout))
    rows = first + in_group
    weight_i = gl.load(weight_ptr + rows, mask=rows < N, other=0.0)
    lse_i = weight_i
    if not IS_BOUNDED:
        lse_i = gl.load(lse_ptr + rows, mask=rows < N, other=0.0)
    scale = 1.0
    if not IS_SCALED:
        scale = 1.0 / (tau * gradient_scale(gl.load(bound_ptr)))
    in_panel = (first_in_panel + group * ROWS + in_group).to(gl.int64)
    for part in gl.static_range(4):
        dots = gl.convert_layout(parts[part], part_layout, assert_trivial=True)
        cols = behind(first_col + part * PART) + in_part
        weight_j = gl.load(col_weight_ptr + cols, mask=cols < M, other=0.0)
        lse_j = weight_j
        if not IS_BOUNDED:
            lse_j = gl.load(col_lse_ptr + cols, mask=cols < M, other=0.0)
        h_ij = h_tile(
            dots, rows, cols, N, M, weight_i, lse_i, weight_j, lse_j, tau, EXCLUDES_SELF,
            EXCLUDES_SELF=EXCLUDES_SELF, IS_BOUNDED=IS_BOUNDED,
        )  # fmt: skip
        if not IS_SCALED:
            h_ij *= scale
        offsets = in_panel[:, None] * M + cols[None, :]
        mask = (rows < N)[:, None] & (cols < M)[None, :]
        store_planes(h_ptr, h_ij, offsets, mask, h_plane, P)


@gluon.jit
def _weigh_bounded(
    group: gl.constexpr, bounded, given, P: gl.constexpr, STAGES: gl.constexpr,
    EXCLUDES_SELF: gl.constexpr, IS_SCALED: gl.constexpr,
):  # fmt: skip
    if bounded != 0:
        _weigh(group, given, P, STAGES, EXCLUDES_SELF, IS_SCALED, IS_BOUNDED=True)
    else:
        _weigh(group, given, P, STAGES, EXCLUDES_SELF, IS_SCALED, IS_BOUNDED=False)


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
    rows_desc,  # of (P, N, DP)
    cols_desc,  # of (P, M, DP)
    lse_ptr,  # (N,) float32
    weight_ptr,  # (N,) float32
    col_lse_ptr,  # (M,) float32
    col_weight_ptr,  # (M,) float32
    bound_ptr,  # () float32
    h_ptr,  # (P, rows of the panel, M), out
    h_plane,
    first_row,  # of the panel
    num_blocks,  # of rows of the panel
    steps,  # of features
    P: gl.constexpr,
    STAGES: gl.constexpr,
    EXCLUDES_SELF: gl.constexpr,
    IS_SCALED: gl.constexpr,
):
    """As the plain kernel in kernels/_wide_gradient.py."""
    ROWS: gl.constexpr = rows_desc.block_shape[1]
    COLS: gl.constexpr = cols_desc.block_shape[1]
    tau = scalar(tau)
    bounded = is_bounded(norms_ptr, col_norms_ptr, num_norms, num_col_norms, N, M, tau)
    ring = new_ring(rows_desc, cols_desc, P, STAGES)
    first_in_panel = gl.program_id(0) % num_blocks * (GROUPS * ROWS)
    first_col = gl.program_id(0) // num_blocks * COLS
    first_row += first_in_panel
    tile = first_row // (GROUPS * ROWS)
    loads = rows_desc, cols_desc, ring, first_col, tile, 1, steps
    given = (
        ring, first_row, first_in_panel, first_col, steps, N, M, tau, lse_ptr, weight_ptr,
        col_lse_ptr, col_weight_ptr, bound_ptr, h_ptr, h_plane,
    )  # fmt: skip
    gl.warp_specialize(
        [
            (load_steps, (loads, P, STAGES)),
            (_weigh_bounded, (0, bounded, given, P, STAGES, EXCLUDES_SELF, IS_SCALED)),
            (_weigh_bounded, (1, bounded, given, P, STAGES, EXCLUDES_SELF, IS_SCALED)),
        ],
        WORKERS_2,
        REGISTERS_2,
    )


def fills_panel(
    h: Tensor,  # (P, rows of the panel, M), out
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
        h.stride(0),
        first_row,
        blocks,
        rows.padded_dim // STEP,
        P=rows.num_planes,
        STAGES=tiles.stages,
        EXCLUDES_SELF=pairs.excludes_self,
        IS_SCALED=is_scaled,
        num_warps=4,
        maxnreg=MAX_REGISTERS[GROUPS.value],
    )
