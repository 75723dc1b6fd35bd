"""What the kernels of wide rows share: a ring of some features at a time, and products over it.

A program multiplies rows that all groups of warps share with rows of which each group has its own.
"""

from __future__ import annotations

from spcl_fast.kernels.hopper._gluon import gl, gluon, load_tile, mbarrier, warpgroup_mma_wait
from spcl_fast.kernels.hopper._tiles import (
    add_first_planes,
    begin_products,
    ring_barriers,
    small_products,
)

GROUPS = gl.constexpr(2)
STEP = 64  # features


@gluon.jit
def new_ring(own_desc, shared_desc, P: gl.constexpr, STAGES: gl.constexpr):
    """Return memory for both kinds of rows, and what says that it is full and that it is free."""
    STEP: gl.constexpr = own_desc.block_shape[2]
    dtype: gl.constexpr = own_desc.dtype
    own_shape: gl.constexpr = [STAGES * GROUPS * P, 1, own_desc.block_shape[1], STEP]
    shared_shape: gl.constexpr = [STAGES * P, 1, shared_desc.block_shape[1], STEP]
    own = gl.allocate_shared_memory(dtype, own_shape, own_desc.layout)
    shared = gl.allocate_shared_memory(dtype, shared_shape, shared_desc.layout)
    ready, empty = ring_barriers(STAGES, GROUPS, 0)
    return own, shared, ready, empty


@gluon.jit
def load_steps(given, P: gl.constexpr, STAGES: gl.constexpr):
    """Load all features of one tile of own rows after the other, with those of the shared rows."""
    own_desc, shared_desc, ring, first_shared, first, tiles, steps = given
    own, shared, ready, empty = ring
    ROWS: gl.constexpr = own_desc.block_shape[1]
    STEP: gl.constexpr = own_desc.block_shape[2]
    BYTES: gl.constexpr = P * (GROUPS * ROWS + shared_desc.block_shape[1]) * STEP * 2
    for k in range(tiles):
        first_own = (first + k) * (GROUPS * ROWS)
        for step in range(steps):
            place = k * steps + step
            stage = place % STAGES
            mbarrier.wait(empty.index(stage), ((place // STAGES) & 1) ^ 1)
            mbarrier.expect(ready.index(stage), BYTES)
            for p in gl.static_range(P):
                for group in gl.static_range(GROUPS):
                    rows = [p, first_own + group * ROWS, step * STEP]
                    tile = own.index((stage * GROUPS + group) * P + p)
                    load_tile(own_desc, rows, ready.index(stage), tile)
                rows = [p, first_shared, step * STEP]
                load_tile(shared_desc, rows, ready.index(stage), shared.index(stage * P + p))


@gluon.jit
def step_products(
    k, group: gl.constexpr, ring, steps, zero, P: gl.constexpr, STAGES: gl.constexpr,
    OWN_FIRST: gl.constexpr, IS_FINITE: gl.constexpr,
):  # fmt: skip
    """Return the products of tile number k of one group's rows and the shared ones, or transposed.

    Otherwise as `spcl_fast.kernels.hopper._tiles.products`.
    """
    own, shared, ready, empty = ring
    # A step begins so many products, which end with the next step's.
    BEGUN: gl.constexpr = P * (P + 1) // 2
    small, large = zero, zero
    for step in range(steps):
        place = k * steps + step
        stage, before = place % STAGES, (place + STAGES - 1) % STAGES
        a, a_tile, b, b_tile = own, stage * GROUPS + group, shared, stage
        if not OWN_FIRST:
            a, a_tile, b, b_tile = shared, stage, own, stage * GROUPS + group
        mbarrier.wait(ready.index(stage), (place // STAGES) & 1)
        if IS_FINITE or P == 1:
            large = begin_products(a, a_tile, b, b_tile, 0, b.shape[2], large, adds=True, P=P)
            large = warpgroup_mma_wait(num_outstanding=BEGUN, deps=(large,))
        else:
            small = small_products(a, a_tile, b, b_tile, 0, b.shape[2], small, adds=True, P=P)
            large = add_first_planes(a, a_tile, b, b_tile, large, P)
            small, large = warpgroup_mma_wait(num_outstanding=BEGUN, deps=(small, large))
        mbarrier.arrive(empty.index(before), count=1, pred=step > 0)
    small, large = warpgroup_mma_wait(num_outstanding=0, deps=(small, large))
    mbarrier.arrive(empty.index((k * steps + steps - 1) % STAGES), count=1)
    if IS_FINITE or P == 1:
        return large
    return gl.where(gl.abs(large) < float("inf"), large + small, large)
