"""What the kernels share: the tiles that a program visits, and their products by planes."""

from __future__ import annotations

from spcl_fast.kernels._planes import plane_rest
from spcl_fast.kernels._similarities import holds_bound
from spcl_fast.kernels.hopper._gluon import (
    gl,
    gluon,
    load_tile,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

_NORMS = gl.constexpr(512)


@gluon.jit
def _largest(ptr, count):
    layout: gl.constexpr = gl.BlockedLayout([_NORMS // 128], [32], [4], [0])
    largest = gl.zeros((_NORMS,), gl.float32, layout=layout)
    for first in range(0, count, _NORMS):
        place = first + gl.arange(0, _NORMS, layout=layout)
        largest = gl.maximum(largest, gl.load(ptr + place, mask=place < count, other=0.0))
    return gl.max(largest, 0)


@gluon.jit
def is_bounded(norms_ptr, col_norms_ptr, num_norms, num_col_norms, N, M, tau):
    """As `spcl_fast.kernels._similarities.is_bounded`, by four warps; 32 bits pass to others."""
    bound = _largest(norms_ptr, num_norms) * _largest(col_norms_ptr, num_col_norms)
    return holds_bound(bound, N, M, tau).to(gl.int32)


@gluon.jit
def tile_order(first, last, first_diagonal, last_diagonal, M, BLOCK_N: gl.constexpr):
    """Return how many whole tiles precede the diagonal, how many lie on it, and all whole ones.

    Tiles first to last - 1 are visited in this order: whole ones, those on the diagonal, and one at
    the ragged end.
    """
    first_diagonal = gl.minimum(gl.maximum(first_diagonal, first), last)
    last_diagonal = gl.minimum(gl.maximum(last_diagonal, first_diagonal), last)
    last_whole = gl.minimum(gl.maximum(M // BLOCK_N, last_diagonal), last)
    lead = first_diagonal - first
    return lead, last_diagonal - first_diagonal, lead + last_whole - last_diagonal


@gluon.jit
def tile_at(k, first, lead, diagonal, whole):
    """Return the tile that is visited as number k."""
    tile = gl.where(k < whole, first + k + diagonal, first + lead + k - whole)
    tile = gl.where(k < whole + diagonal, tile, first + k)
    return gl.where(k < lead, first + k, tile)


@gluon.jit
def ring_barriers(STAGES: gl.constexpr, GROUPS: gl.constexpr, OTHERS: gl.constexpr):
    """Return barriers of what is ready, each place of a ring and then others, and of free places.

    A place is free when so many groups have left it.
    """
    ready = gl.allocate_shared_memory(gl.int64, [STAGES + OTHERS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES + OTHERS):
        mbarrier.init(ready.index(i), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(empty.index(i), count=GROUPS)
    return ready, empty


@gluon.jit
def load_tiles(given, P: gl.constexpr, STAGES: gl.constexpr):
    """Load the rows of a program, as many as z_i holds, and one tile of columns after the other."""
    (
        rows_desc, cols_desc, z_i, z_j, ready, empty, first_row, first, lead, diagonal, whole, tiles
    ) = given  # fmt: skip
    ROWS: gl.constexpr = rows_desc.block_shape[1]
    BLOCK_N: gl.constexpr = cols_desc.block_shape[1]
    DP: gl.constexpr = cols_desc.block_shape[2]
    PARTS: gl.constexpr = z_i.shape[0] // P
    mbarrier.expect(ready.index(STAGES), PARTS * P * ROWS * DP * 2)
    for part in gl.static_range(PARTS):
        for p in gl.static_range(P):
            place = [p, first_row + part * ROWS, 0]
            load_tile(rows_desc, place, ready.index(STAGES), z_i.index(part * P + p))
    for k in range(tiles):
        stage = k % STAGES
        first_col = tile_at(k, first, lead, diagonal, whole) * BLOCK_N
        mbarrier.wait(empty.index(stage), ((k // STAGES) & 1) ^ 1)
        mbarrier.expect(ready.index(stage), P * BLOCK_N * DP * 2)
        for p in gl.static_range(P):
            load_tile(cols_desc, [p, first_col, 0], ready.index(stage), z_j.index(stage * P + p))


@gluon.jit
def behind(place):
    """Return a place as computed here: what it leads to is not moved out of loops.

    Addresses of products and places on the diagonal, which every tile needs, would take registers
    all the time.
    """
    return gl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r", [place], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def plane(tiles, place, P: gl.constexpr, p: gl.constexpr):
    """Return plane p of one of some tiles (places P, 1, rows, features), (rows, features)."""
    tile = tiles.index(place * P + p)
    return tile.reshape([tile.shape[1], tile.shape[2]])


@gluon.jit
def _product(
    a, a_tile, a_plane: gl.constexpr, b, b_tile, b_plane: gl.constexpr, first: gl.constexpr,
    count: gl.constexpr, acc, adds: gl.constexpr, P: gl.constexpr, SPARES: gl.constexpr = False,
):  # fmt: skip
    if SPARES:  # registers: addresses of all products would take more
        a_tile = behind(a_tile)
    left = plane(a, a_tile, P, a_plane)
    right = plane(b, b_tile, P, b_plane).slice(first, count)
    return warpgroup_mma(left, right.permute((1, 0)), acc, use_acc=adds, is_async=True)


@gluon.jit
def add_first_planes(a, a_tile, b, b_tile, acc, P: gl.constexpr):
    """Begin acc + a b^T for the first planes."""
    return _product(a, a_tile, 0, b, b_tile, 0, 0, b.shape[2], acc, adds=True, P=P)


@gluon.jit
def small_products(
    a, a_tile, b, b_tile, first: gl.constexpr, count: gl.constexpr, acc, adds: gl.constexpr,
    P: gl.constexpr, SPARES: gl.constexpr = False,
):  # fmt: skip
    """Begin a b^T over all pairs of planes but the first, P > 1, added to acc or not."""
    if P == 3:
        acc = _product(a, a_tile, 0, b, b_tile, 2, first, count, acc, adds, P, SPARES)
        acc = _product(a, a_tile, 1, b, b_tile, 1, first, count, acc, adds=True, P=P, SPARES=SPARES)
        acc = _product(a, a_tile, 2, b, b_tile, 0, first, count, acc, adds=True, P=P, SPARES=SPARES)
    acc = _product(a, a_tile, 0, b, b_tile, 1, first, count, acc, adds or P == 3, P, SPARES)
    return _product(a, a_tile, 1, b, b_tile, 0, first, count, acc, adds=True, P=P, SPARES=SPARES)


@gluon.jit
def begin_products(
    a, a_tile, b, b_tile, first: gl.constexpr, count: gl.constexpr, acc, adds: gl.constexpr,
    P: gl.constexpr, SPARES: gl.constexpr = False,
):  # fmt: skip
    """Begin a b^T, for `count` rows of b, over all pairs of planes, added to acc or not.

    The smallest come first; `warpgroup_mma_wait` ends it.
    """
    if P == 1:
        return _product(a, a_tile, 0, b, b_tile, 0, first, count, acc, adds, P, SPARES)
    small = small_products(a, a_tile, b, b_tile, first, count, acc, adds, P, SPARES)
    return _product(a, a_tile, 0, b, b_tile, 0, first, count, small, adds=True, P=P, SPARES=SPARES)


@gluon.jit
def products(
    a, a_tile, b, b_tile, first: gl.constexpr, count: gl.constexpr, zero, P: gl.constexpr,
    IS_FINITE: gl.constexpr, SPARES: gl.constexpr = False,
):  # fmt: skip
    """As `spcl_fast.kernels._plane_products.products`."""
    if IS_FINITE or P == 1:
        dots = begin_products(
            a, a_tile, b, b_tile, first, count, zero, adds=False, P=P, SPARES=SPARES
        )
        return warpgroup_mma_wait(num_outstanding=0, deps=(dots,))
    small = small_products(a, a_tile, b, b_tile, first, count, zero, adds=False, P=P, SPARES=SPARES)
    large = _product(a, a_tile, 0, b, b_tile, 0, first, count, zero, adds=False, P=P, SPARES=SPARES)
    small, large = warpgroup_mma_wait(num_outstanding=0, deps=(small, large))
    return gl.where(gl.abs(large) < float("inf"), large + small, large)


@gluon.jit
def _weighted(h, z, tile, p: gl.constexpr, first: gl.constexpr, acc, P: gl.constexpr):
    rows = plane(z, tile, P, p).slice(first, h.type.shape[1])
    return warpgroup_mma(h, rows, acc, is_async=True)


@gluon.jit
def add_weighted(h, z, tile, first: gl.constexpr, acc, P: gl.constexpr):
    """As `spcl_fast.kernels._plane_products.add_weighted`, for rows of a tile z from `first` on."""
    operand: gl.constexpr = gl.DotOperandLayout(0, acc.type.layout, 2)
    part = h.to(z.dtype)
    large = gl.convert_layout(part, operand)
    if P > 1:
        rest = plane_rest(h, part)
        part = rest.to(z.dtype)
        middle = gl.convert_layout(part, operand)
        if P == 3:
            small = gl.convert_layout(plane_rest(rest, part).to(z.dtype), operand)
            acc = _weighted(small, z, tile, 0, first, acc, P)
            acc = _weighted(middle, z, tile, 1, first, acc, P)
            acc = _weighted(large, z, tile, 2, first, acc, P)
        acc = _weighted(middle, z, tile, 0, first, acc, P)
        acc = _weighted(large, z, tile, 1, first, acc, P)
    acc = _weighted(large, z, tile, 0, first, acc, P)
    return warpgroup_mma_wait(num_outstanding=0, deps=(acc,))


@gluon.jit
def halves(tile):
    """Return the columns of a tile in two halves: what is computed of one takes few registers."""
    return tile.reshape([tile.shape[0], 2, tile.shape[1] // 2]).permute((0, 2, 1)).split()


@gluon.jit
def quarters(tile):
    """Return the columns of a tile in four parts."""
    left, right = halves(tile)
    first, second = halves(left)
    third, fourth = halves(right)
    return first, second, third, fourth
