"""Shifted sums of `pair_lse` by tiles: where similarities have no bound, in pair_sums.py."""

from __future__ import annotations

from spcl_fast.kernels._similarities import FLOAT32_MAX, LN_2, rounded_sim
from spcl_fast.kernels.hopper._gluon import gl, gluon, mbarrier
from spcl_fast.kernels.hopper._sums import add_rows, log_sums_of_columns, masked
from spcl_fast.kernels.hopper._tiles import behind, halves, products


@gluon.jit
def store_own(group: gl.constexpr, GROUPS: gl.constexpr, own, first_row, N, own_ptr, own_stride):
    """Store one group's part of the rows."""
    # A thread each: places of the layout of products would take registers in the loops before.
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    BLOCK_M: gl.constexpr = own.shape[0]
    start = (gl.program_id(1) * GROUPS + group).to(gl.int64) * own_stride
    start += gl.program_id(0) * BLOCK_M
    in_block = gl.arange(0, BLOCK_M, layout=layout)
    own = gl.convert_layout(own, layout)
    gl.store(own_ptr + start + in_block, own, mask=in_block < N - behind(first_row))


@gluon.jit
def sum_shifted(
    group: gl.constexpr, GROUPS: gl.constexpr, z_i, z_j, ready, empty, first_row, first, whole,
    tiles, N, M, tau, own_ptr, own_stride, visited_parts, P: gl.constexpr, STAGES: gl.constexpr,
    EXCLUDES_SELF: gl.constexpr, HAS_VISITED: gl.constexpr,
):  # fmt: skip
    """Store log-sum-exps for the rows and for the columns, half the columns of a tile at a time.

    Here a tile is (owned, visited): shifts and sums of all owned rows then fit into registers.
    """
    BLOCK_M: gl.constexpr = z_i.shape[2]
    BLOCK_N: gl.constexpr = z_j.shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    COLS: gl.constexpr = BLOCK_N // 2
    half: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLS, 16])
    in_block = gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, half))
    in_half = gl.arange(0, COLS, layout=gl.SliceLayout(0, half))
    zero = gl.zeros((BLOCK_M, BLOCK_N), gl.float32, layout=layout)
    sums = gl.zeros((BLOCK_M,), gl.float32, layout=gl.SliceLayout(1, half))
    shift = sums - FLOAT32_MAX
    for k in range(group, tiles, GROUPS):
        stage = k % STAGES
        mbarrier.wait(ready.index(stage), (k // STAGES) & 1)
        # 0, as no tile is whole here, which the compiler does not know: it would keep all addresses
        # of products for the next tile.
        at = whole * k
        parts = halves(products(z_i, at, z_j, stage + at, 0, BLOCK_N, zero, P, IS_FINITE=False))
        mbarrier.arrive(empty.index(stage), count=1)
        for part in gl.static_range(2):
            first_col = behind((first + k) * BLOCK_N + part * COLS)
            rows = (in_block + (first_row - first_col))[:, None]
            cols = in_half[None, :]
            dots = gl.convert_layout(parts[part], half, assert_trivial=True)
            dots = masked(dots, rows, cols, N - first_col, M - first_col, EXCLUDES_SELF)
            sim = rounded_sim(dots, tau)
            if HAS_VISITED:
                part_j = log_sums_of_columns(sim)
                gl.store(visited_parts + first_col + in_half, part_j, mask=in_half < M - first_col)
            shift, sums = add_rows(sim, shift, sums)
    own = shift + gl.log2(sums) * LN_2
    store_own(group, GROUPS, own, first_row, N, own_ptr, own_stride)
