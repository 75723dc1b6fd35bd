"""The shares of the ranks together are every unordered pair of rows once."""

from __future__ import annotations

import pytest
import torch

from spcl_fast.distributed.contrastive_rows import blocks_of


# 0 to 2: fewer rows than ranks; 37: ragged blocks, odd and even; 64: equal ones for 1, 2, 4, 8, 16.
@pytest.mark.parametrize("num_rows", [0, 1, 2, 37, 64])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 5, 6, 7, 8, 16])
def test_every_pair_is_visited_once(num_rows: int, world: int) -> None:
    visits = torch.zeros(num_rows, num_rows, dtype=torch.int64)
    shares = []
    for rank in range(world):
        blocks = blocks_of(num_rows, world, rank)
        order = torch.arange(num_rows).roll(-blocks.start)
        own = order[: blocks.own]
        assert own.tolist() == list(range(blocks.start, blocks.start + blocks.own))
        visits[own[:, None], own] += 1
        share = blocks.own**2 / 2
        for (a, b), (c, d) in blocks.rectangles:
            rows, refs = order[a:b], order[c:d]
            visits[rows[:, None], refs] += 1
            visits[refs[:, None], rows] += 1
            share += len(rows) * len(refs)
        shares.append(share)
    assert torch.equal(visits, torch.ones_like(visits))
    assert sum(shares) == num_rows**2 / 2
    # blocks differ by a row, so shares differ by a row against half of the others
    assert max(shares) - min(shares) <= num_rows + world


def test_equal_blocks_have_equal_shares() -> None:
    for world in (1, 2, 4, 8, 16):
        shares = []
        for rank in range(world):
            blocks = blocks_of(64, world, rank)
            areas = [(b - a) * (d - c) for (a, b), (c, d) in blocks.rectangles]
            shares.append(blocks.own**2 + 2 * sum(areas))
        assert shares == [64**2 // world] * world
