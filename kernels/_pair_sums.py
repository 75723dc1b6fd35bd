"""The forward of `pair_lse`, in kernels/pair_lse.py: parts of sums by panels, and their merge."""

from __future__ import annotations

from torch import Tensor

from spcl_fast.kernels._bound import cdiv
from spcl_fast.kernels._class_sums import BlockSums, summing
from spcl_fast.kernels._config_tables import PAIR_SUMS
from spcl_fast.kernels._configs import Config, pick
from spcl_fast.kernels._pair_sum_kernels import merge_parts_kernel, pair_sums_kernel
from spcl_fast.kernels._similarities import PlanePairs
from spcl_fast.kernels.hopper import _choice as hopper
from spcl_fast.kernels.hopper._choice import Tiles, tiles_for

_MERGE_ROWS = 128
_MERGE_PARTS = 16


def fill_lse(
    pairs: PlanePairs, lse: Tensor, col_lse: Tensor | None, block_sums: BlockSums | None = None
) -> None:
    """Fill lse (N,) and col_lse (M,), by panels of rows whose parts take O((N + M) D) memory.

    Square pairs need no col_lse. With None, the sums of the columns are left out. Sums of
    blocks of sorted columns are filled on the way, in no launch of their own, if col_lse is None.
    """
    tiles = tiles_for(hopper.PAIR_SUMS, pairs)
    if tiles is None or not _fills_lse(pairs, tiles, lse, col_lse, block_sums):
        config = pick("pair_sums", PAIR_SUMS, pairs.rows, pairs.rows.data.device)
        _fills_lse(pairs, config, lse, col_lse, block_sums)


def _fills_lse(
    pairs: PlanePairs,
    config: Config | Tiles,
    lse: Tensor,
    col_lse: Tensor | None,
    block_sums: BlockSums | None,
) -> bool:
    """Fill both, unless the kernel does not compile."""
    is_square, M = pairs.is_square, pairs.num_cols
    num_blocks = cdiv(pairs.num_rows, config.block_m)
    has_visited = is_square or col_lse is not None
    panel_blocks = num_blocks
    if has_visited:
        panel_blocks = max(1, min(num_blocks, pairs.part_bytes() // (4 * M)))
    visited = lse.new_empty(panel_blocks if has_visited else 0, M)
    for first_block in range(0, num_blocks, panel_blocks):
        blocks = min(panel_blocks, num_blocks - first_block)
        own = _sum_panel(pairs, config, first_block, blocks, visited)
        if own is None:
            return False
        first_row = first_block * config.block_m
        last_row = min(pairs.num_rows, first_row + own.shape[1])
        longest = last_row - first_row
        if is_square:
            longest = M - first_row
        elif has_visited:
            longest = max(longest, M)
        sides = 2 if has_visited and not is_square else 1
        merges = cdiv(longest, _MERGE_ROWS)
        programs, summed, constants = summing(pairs, block_sums if first_block == 0 else None)
        merge_parts_kernel[(merges + programs, sides)](
            *pairs.bounds(),
            own,
            visited,
            lse,
            lse if col_lse is None else col_lse,
            own.shape[0],
            blocks,
            first_row,
            last_row,
            own.stride(0),
            M,
            int(first_block == 0),
            int(first_block + blocks == num_blocks),
            merges,
            *summed,
            BLOCK=_MERGE_ROWS,
            BLOCK_M=config.block_m,
            BLOCK_K=_MERGE_PARTS,
            IS_TRIANGULAR=is_square,
            **constants,
        )
    return True


def _sum_panel(
    pairs: PlanePairs, config: Config | Tiles, first_block: int, blocks: int, visited: Tensor
) -> Tensor | None:
    """Return the parts of the rows of a panel, (parts of a block, rows), and fill visited."""
    num_tiles = cdiv(pairs.num_cols, config.block_n)
    visits = blocks * num_tiles
    if pairs.is_square:
        ratio = config.block_m // config.block_n
        visits -= ratio * sum(range(first_block, first_block + blocks))
    tiles_per_program = cdiv(visits, pairs.num_programs)
    programs = cdiv(num_tiles, tiles_per_program)
    if isinstance(config, Tiles):
        from spcl_fast.kernels.hopper.pair_sums import fills_sums
        from spcl_fast.kernels.hopper.wide_sums import fills_wide_sums

        own = visited.new_empty(programs * config.groups, blocks * config.block_m)
        place = first_block, tiles_per_program
        fills = fills_wide_sums if pairs.is_wide else fills_sums
        return own if fills(own, visited, pairs, *place, config) else None
    own = visited.new_empty(programs, blocks * config.block_m)
    padded = pairs.rows.padded_dim
    pair_sums_kernel[(blocks, programs)](
        *pairs.planes(),
        *pairs.bounds(),
        own,
        visited,
        first_block,
        tiles_per_program,
        own.stride(0),
        pairs.num_cols,
        BLOCK_D=pairs.rows.step if pairs.is_wide else padded,
        DP=padded,
        P=pairs.rows.num_planes,
        EXCLUDES_SELF=pairs.excludes_self,
        IS_TRIANGULAR=pairs.is_square,
        HAS_VISITED=visited.shape[0] > 0,
        **config.launch_options(),
    )
    return own
