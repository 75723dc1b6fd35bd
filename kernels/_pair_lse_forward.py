"""The forward of `pair_lse`: every unordered pair once; see kernels/pair_lse.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from spcl_fast.kernels._config_tables import PAIR_LSE_FORWARD, WIDE
from spcl_fast.kernels._configs import Config, pick
from spcl_fast.kernels._features import padded_features
from spcl_fast.kernels._pair_lse_pairs import (
    LOG2_E,
    NormedPairs,
    exponent_scale,
    is_bounded,
    is_wide,
    rounded_sim,
)
from spcl_fast.kernels._tiles import dots_by_blocks, load_tile, multiple_of, scalar

_LN_2 = tl.constexpr(0.6931471805599453)
_FLOAT32_MAX = tl.constexpr(3.4028234663852886e38)
# Features per step of wide rows.
_STEP = 64
_MERGE_ROWS = 128
_MERGE_PARTS = 16


@triton.jit
def _finite(shift):
    """Clamp a shift to finite numbers: inf - inf would turn infinite sums into NaN."""
    return tl.minimum(tl.maximum(shift, -_FLOAT32_MAX), _FLOAT32_MAX)


@triton.jit
def pair_sums_kernel(
    z_ptr,  # (N, D)
    refs_ptr,  # (M, D), or z_ptr
    norm_ptr,  # () float32, largest norm of a row of z
    refs_norm_ptr,  # () float32
    own_ptr,  # (programs of a block, own_stride) float32, out: parts of the rows of z
    visited_ptr,  # (blocks, visited_stride) float32, out: parts of the rows of refs
    tau,  # number or pointer
    first_block,  # of BLOCK_M rows of z
    tiles_per_program,  # of BLOCK_N rows of refs
    N,
    M,
    D,
    own_stride,
    visited_stride,
    stride_n,
    stride_d,
    refs_stride_n,
    refs_stride_d,
    BLOCK_M: tl.constexpr,  # rows of z owned by one program
    BLOCK_N: tl.constexpr,  # rows of refs visited per step, a divisor of BLOCK_M
    BLOCK_D: tl.constexpr,
    ALIGNMENT: tl.constexpr,  # divides D and the row strides
    IS_SQUARE: tl.constexpr,
    IS_WIDE: tl.constexpr,  # D > BLOCK_D
    IS_BOUNDED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sum exp(s_ij) over some tiles: for each owned row, and over the block for each visited row.

    If bounded, parts are sums of exp; otherwise they are log-sum-exps. A tile is (visited, owned):
    the sum over owned rows stays within a warp, the other is reduced across warps only once.
    """
    tau = scalar(tau)
    if is_bounded(norm_ptr, refs_norm_ptr, tau) != IS_BOUNDED:
        return
    D = multiple_of(D, ALIGNMENT)
    stride_n = multiple_of(stride_n, ALIGNMENT)
    refs_stride_n = multiple_of(refs_stride_n, ALIGNMENT)
    block = first_block + tl.program_id(0)
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    own_parts = own_ptr + tl.program_id(1).to(tl.int64) * own_stride + rows - first_block * BLOCK_M
    visited_parts = visited_ptr + tl.program_id(0).to(tl.int64) * visited_stride
    tiles = tl.cdiv(M, BLOCK_N)
    first = tl.program_id(1) * tiles_per_program
    last = tl.minimum(first + tiles_per_program, tiles)
    first_off_diagonal = 0  # tiles before it hold both orders of a pair
    if IS_SQUARE:
        first = tl.maximum(first, block * (BLOCK_M // BLOCK_N))
        first_off_diagonal = (block + 1) * (BLOCK_M // BLOCK_N)
    scale = exponent_scale(tau)
    d = tl.arange(0, BLOCK_D)
    if not IS_WIDE:
        z_i = load_tile(z_ptr, rows, N, d, D, stride_n, stride_d)

    sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    shift = tl.full((BLOCK_M,), -_FLOAT32_MAX, tl.float32)
    own_sum = tl.zeros((BLOCK_M,), tl.float32)
    for tile in range(first, last):
        cols = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        if IS_WIDE:
            dots = dots_by_blocks(
                refs_ptr, cols, M, z_ptr, rows, N, D,
                refs_stride_n, refs_stride_d, stride_n, stride_d, BLOCK_D, PRECISION,
            )  # fmt: skip
        else:
            z_j = load_tile(refs_ptr, cols, M, d, D, refs_stride_n, refs_stride_d)
            dots = tl.dot(z_j, tl.trans(z_i), input_precision=PRECISION)
        # Only tiles at an end or on the diagonal hold pairs that are excluded.
        if (tile < first_off_diagonal) | (tile + 1 == tiles) | ((block + 1) * BLOCK_M > N):
            valid = (cols < M)[:, None] & (rows < N)[None, :]
            if IS_SQUARE:
                valid &= cols[:, None] != rows[None, :]
            dots = tl.where(valid, dots, -float("inf"))
        if IS_BOUNDED:
            exps = tl.exp2(dots * scale)
            sums += exps
            part = tl.sum(exps, 1)
        else:
            sim = rounded_sim(dots, tau)
            shift_j = _finite(tl.max(sim, 1))
            exps = tl.exp2((sim - shift_j[:, None]) * LOG2_E)
            part = shift_j + tl.log2(tl.sum(exps, 1)) * _LN_2
            larger = tl.maximum(shift, _finite(tl.max(sim, 0)))
            own_sum *= tl.exp2((shift - larger) * LOG2_E)
            own_sum += tl.sum(tl.exp2((sim - larger[None, :]) * LOG2_E), 0)
            shift = larger
        tl.store(visited_parts + cols, part, mask=(cols < M) & (tile >= first_off_diagonal))
    if IS_BOUNDED:
        own = tl.sum(sums, 0)
    else:
        own = shift + tl.log2(own_sum) * _LN_2
    tl.store(own_parts, own, mask=rows < N)


@triton.jit
def merge_parts_kernel(
    parts_ptr,  # (num_parts, stride) float32
    lse_ptr,  # (N,) float32, in and out
    norm_ptr,  # () float32
    refs_norm_ptr,  # () float32
    tau,  # number or pointer
    num_parts,
    first_row,  # of lse
    last_row,
    first_part_row,  # of the parts: row first_row has column first_row - first_part_row
    first_block,  # of the part in line 0
    stride,
    BLOCK: tl.constexpr,  # rows of lse owned by one program
    BLOCK_M: tl.constexpr,  # rows of z owned by one program of pair_sums_kernel
    BLOCK_K: tl.constexpr,  # parts per step
    IS_TRIANGULAR: tl.constexpr,  # a row has parts only of the blocks before its own
    IS_FIRST: tl.constexpr,  # lse holds nothing yet
    IS_LAST: tl.constexpr,  # lse becomes the log-sum-exp
):
    """Add parts in the order of their blocks; between panels lse is itself such a part."""
    rows = first_row + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    num_valid = tl.full((BLOCK,), 0, tl.int32) + num_parts
    if IS_TRIANGULAR:
        num_valid = tl.minimum(num_valid, rows // BLOCK_M - first_block)
    in_range = rows < last_row
    bounded = is_bounded(norm_ptr, refs_norm_ptr, scalar(tau))
    neutral = tl.where(bounded, 0.0, -float("inf"))
    total = tl.full((BLOCK,), 0.0, tl.float32) + neutral
    if not IS_FIRST:
        total = tl.load(lse_ptr + rows, mask=in_range, other=0.0)
    for first in range(0, num_parts, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        offsets = k.to(tl.int64)[:, None] * stride + (rows - first_part_row)[None, :]
        mask = (k[:, None] < num_valid[None, :]) & in_range[None, :]
        parts = tl.load(parts_ptr + offsets, mask=mask, other=neutral)
        if bounded:
            total += tl.sum(parts, 0)
        else:
            shift = _finite(tl.maximum(total, tl.max(parts, 0)))
            exps = tl.exp2((parts - shift[None, :]) * LOG2_E)
            exps_sum = tl.sum(exps, 0) + tl.exp2((total - shift) * LOG2_E)
            total = shift + tl.log2(exps_sum) * _LN_2
    if IS_LAST:
        if bounded:
            total = tl.log2(total) * _LN_2
    tl.store(lse_ptr + rows, total, mask=in_range)


def fill_lse(pairs: NormedPairs, lse: Tensor, lse_refs: Tensor) -> None:
    """Fill lse (N,) and lse_refs (M,), by panels of rows whose parts take O((N + M) D) memory."""
    N, M, D = pairs.sizes()
    config_d = WIDE if is_wide(pairs.z) else padded_features(D)
    config = pick("pair_lse_fwd", PAIR_LSE_FORWARD, pairs.z.dtype, config_d, pairs.z.device)
    num_blocks = triton.cdiv(N, config.block_m)
    panel_blocks = max(1, min(num_blocks, pairs.part_bytes() // (4 * M)))
    buffer = lse.new_empty(panel_blocks, M)
    for first_block in range(0, num_blocks, panel_blocks):
        visited = buffer[: num_blocks - first_block]
        own = _sum_panel(pairs, config, first_block, visited)
        first_row = first_block * config.block_m
        own_rows = first_row, min(N, first_row + own.shape[1])
        is_first, is_last = first_block == 0, first_block + len(visited) == num_blocks
        if pairs.is_square:
            rows = first_row, N
            _merge(pairs, visited, lse, rows, 0, config, is_first=is_first, is_last=False)
            _merge(pairs, own, lse, own_rows, first_row, config, is_first=False, is_last=True)
        else:
            rows = 0, M
            _merge(pairs, visited, lse_refs, rows, 0, config, is_first=is_first, is_last=is_last)
            _merge(pairs, own, lse, own_rows, first_row, config, is_first=True, is_last=True)


def _sum_panel(
    pairs: NormedPairs,
    config: Config,
    first_block: int,
    visited: Tensor,  # (blocks, M) float32, out
) -> Tensor:
    """Return the parts of the rows of a panel, (programs of a block, rows), and fill visited."""
    _, M, D = pairs.sizes()
    blocks, num_tiles = visited.shape[0], triton.cdiv(M, config.block_n)
    visits = blocks * num_tiles
    if pairs.is_square:
        ratio = config.block_m // config.block_n
        visits -= ratio * sum(range(first_block, first_block + blocks))
    tiles_per_program = triton.cdiv(visits, pairs.num_programs)
    own = visited.new_empty(triton.cdiv(num_tiles, tiles_per_program), blocks * config.block_m)
    constants = pairs.constants() | config.launch_options()
    for bounded in (True, False):
        pair_sums_kernel[(blocks, own.shape[0])](
            pairs.z,
            pairs.refs,
            pairs.norm,
            pairs.refs_norm,
            own,
            visited,
            pairs.tau,
            first_block,
            tiles_per_program,
            *pairs.sizes(),
            own.stride(0),
            visited.stride(0),
            *pairs.strides(),
            BLOCK_D=_STEP if is_wide(pairs.z) else padded_features(D),
            IS_WIDE=is_wide(pairs.z),
            IS_BOUNDED=bounded,
            **constants,
        )
    return own


def _merge(
    pairs: NormedPairs,
    parts: Tensor,  # (num_parts, stride) float32
    lse: Tensor,
    rows: tuple[int, int],  # of lse
    first_part_row: int,  # row of lse in column 0 of the parts
    config: Config,
    *,
    is_first: bool,
    is_last: bool,
) -> None:
    """Add parts to a range of lse; the diagonal block of a row is among its own parts."""
    merge_parts_kernel[(triton.cdiv(rows[1] - rows[0], _MERGE_ROWS),)](
        parts,
        lse,
        pairs.norm,
        pairs.refs_norm,
        pairs.tau,
        parts.shape[0],
        *rows,
        first_part_row,
        rows[0] // config.block_m,
        parts.stride(0),
        BLOCK=_MERGE_ROWS,
        BLOCK_M=config.block_m,
        BLOCK_K=_MERGE_PARTS,
        IS_TRIANGULAR=pairs.is_square and not is_last,
        IS_FIRST=is_first,
        IS_LAST=is_last,
    )
