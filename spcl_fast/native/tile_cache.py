"""How much memory the cache of tiles may take from a forward to its backward."""

from __future__ import annotations

from numbers import Integral

_FLOATS_PER_MIB = 1 << 18
_STEP = 48  # of the rows of a cached tile

_mib = 256


def set_tile_cache_mib(mib: int) -> None:
    """Set the memory in MiB that one `pair_lse` on the CPU may take to cache tiles.

    The forward caches the exponentials of tiles of the similarity matrix while they fit, and the
    backward recomputes the others. The result is the same up to rounding. Nothing is cached where
    no gradient can be asked for. The memory is held from one step to the next, until
    `release_kept_memory` frees it.

    Args:
        mib: 0 caches nothing; 256 at the start of a process.

    Raises:
        TypeError: `mib` is not an int.
        ValueError: `mib` is below 0.
    """
    global _mib
    if isinstance(mib, bool) or not isinstance(mib, Integral):
        raise TypeError(f"mib must be an int, got {type(mib).__name__}")
    if mib < 0:
        raise ValueError(f"mib must be at least 0, got {mib}")
    _mib = int(mib)


def get_tile_cache_mib() -> int:
    """Return the memory in MiB set by `set_tile_cache_mib`."""
    return _mib


def block_rows(num_rows: int) -> int:
    """Return how many of `num_rows` rows a tile takes, as in csrc/cpu/operand.h."""
    return 144 if num_rows <= 144 else min(144, -(-num_rows // 1536) * 96)


def cache_size(num_rows: int, num_refs: int | None) -> int:
    """Return how many floats to cache of a square matrix, or of one with references.

    Args:
        num_rows: N.
        num_refs: M, or None for the square case.
    """
    num_cols = num_rows if num_refs is None else num_refs
    height, width = block_rows(num_rows), block_rows(num_cols)
    row_blocks, col_blocks = -(-num_rows // height), -(-num_cols // width)
    num_tiles = row_blocks * col_blocks
    if num_refs is None:
        num_tiles = row_blocks * (row_blocks + 1) // 2
    tile_size = min(height, _whole(num_rows)) * min(width, _whole(num_cols))
    if tile_size == 0:
        return 0
    return min(num_tiles, _mib * _FLOATS_PER_MIB // tile_size) * tile_size


def _whole(rows: int) -> int:
    return -(-rows // _STEP) * _STEP
