"""The configurations of all kernels, by planes, padded features and architecture.

Times of one H100 chose those of one plane on sm_90 in PAIR_SUMS and ROW_GRADIENT, among what does
not spill; what the compiler reports chose the others. Unless its comment says otherwise an entry
neither spills nor repeats products, compiled by Triton 3.6 or 3.8, and no wgmma waits for another.
BLOCK_M rows are owned by a program and BLOCK_N are visited per step; a visited row is read once per
BLOCK_M owned rows, so that of what compiles well the largest BLOCK_M is taken.

Entries of architecture 80 also serve those with 99 KiB of shared memory, 86, 89 and 120, and AMD.
"""

from __future__ import annotations

from collections.abc import Mapping

from spcl_fast.kernels._configs import Config, Key

Table = Mapping[Key, Config]

# The entry for rows of any number of features.
WIDE = 1 << 30


def _also_for_sm_120(table: Table) -> Table:
    """Return the entries, those of sm_80 once more for sm_120: those of sm_90 are too large."""
    large = {(planes, dim) for planes, dim, arch in table if arch == 90}
    added = {(*key, 120): table[(*key, 80)] for key in large}
    return {**table, **added}


# A tile is (BLOCK_N, BLOCK_M): 64 visited rows for 4 warps, or their products are repeated.
PAIR_SUMS = _also_for_sm_120(
    {
        (1, 128, 80): Config(128, 64, 4, 3),
        (1, 128, 90): Config(128, 64, 4, 4),
        (1, 128, 100): Config(128, 64, 8, 3),  # 4 warps spill
        (1, 256, 80): Config(128, 64, 8, 2),
        (1, 256, 90): Config(256, 64, 8, 2),  # a third stage does not fit, compiled by Triton 3.6
        (1, WIDE, 80): Config(128, 64, 4, 3),
        (2, 128, 80): Config(64, 32, 4, 2),  # 64 x 64 spills
        (2, 128, 90): Config(128, 128, 8, 2),
        (2, 128, 100): Config(64, 32, 4, 2),  # 64 x 64 spills
        (2, 256, 80): Config(32, 16, 4, 2),  # what fits in shared memory
        (2, 256, 90): Config(64, 64, 4, 2),
        (2, WIDE, 80): Config(128, 64, 8, 2),
        (2, WIDE, 90): Config(64, 64, 4, 3),
        (3, 128, 80): Config(64, 16, 4, 2),  # what fits in shared memory
        (3, 128, 90): Config(64, 64, 4, 2),
        (3, WIDE, 80): Config(128, 64, 8, 2),
        (3, WIDE, 90): Config(64, 64, 4, 3),
    }
)
ROW_GRADIENT = _also_for_sm_120(
    {
        (1, 64, 80): Config(128, 32, 4, 3),  # 128 x 64 was 5 % faster, but spills
        (1, 128, 80): Config(128, 32, 8, 3),
        (1, 128, 90): Config(256, 32, 8, 3),  # 256 x 64 was 2 % faster, but spills
        (1, 256, 80): Config(128, 32, 8, 2),
        (1, 256, 90): Config(128, 64, 8, 3),
        (2, 128, 80): Config(128, 32, 8, 2),
        (2, 128, 90): Config(128, 64, 8, 2),
        (2, 256, 80): Config(64, 16, 4, 2),  # spills, compiled by 3.6; 8 warps repeat products
        (2, 256, 90): Config(128, 32, 8, 2),
        (3, 128, 80): Config(64, 16, 4, 2),
        (3, 128, 90): Config(128, 64, 8, 2),
    }
)

# Of wide rows: a panel of h, and its product with the rows visited (BLOCK_N are features there).
H_PANEL = _also_for_sm_120(
    {
        (1, WIDE, 80): Config(128, 128, 8, 3),
        (2, WIDE, 80): Config(128, 64, 8, 3),
        (2, WIDE, 90): Config(128, 128, 8, 3),
        (3, WIDE, 80): Config(128, 32, 8, 2),  # 128 x 64 spills
        (3, WIDE, 90): Config(128, 128, 8, 3),
    }
)
PANEL_PRODUCT: Table = {
    (1, WIDE, 80): Config(128, 128, 8, 3),
    (2, WIDE, 80): Config(128, 128, 8, 3),
    (3, WIDE, 80): Config(128, 128, 8, 3),  # two stages spill
}

# 64 rows: more would visit more columns that are positive for none of their labels.
POSITIVE_FORWARD = _also_for_sm_120(
    {
        (1, 128, 80): Config(64, 64, 4, 2),
        (1, WIDE, 80): Config(64, 32, 4, 2),
        (2, 256, 80): Config(64, 16, 4, 2),  # what fits in shared memory
        (2, 256, 90): Config(64, 64, 4, 2),
        (2, WIDE, 80): Config(64, 32, 4, 2),
        (3, 128, 80): Config(64, 16, 4, 2),
        (3, 128, 90): Config(64, 64, 4, 2),
        (3, WIDE, 80): Config(64, 32, 4, 2),
    }
)
POSITIVE_BACKWARD = _also_for_sm_120(
    {
        (1, 128, 80): Config(64, 32, 4, 3),
        (1, 128, 90): Config(64, 64, 4, 2),
        (1, WIDE, 80): Config(32, 64, 4, 2),
        (2, 128, 80): Config(64, 32, 4, 2),
        (2, 256, 80): Config(32, 32, 4, 1),
        (2, WIDE, 80): Config(64, 32, 4, 2),
        (3, 128, 80): Config(32, 32, 4, 1),
        (3, 128, 90): Config(64, 32, 4, 2),
        (3, WIDE, 80): Config(32, 32, 4, 2),
    }
)

# As POSITIVE_FORWARD with fewer columns: the counts take registers too.
HISTOGRAM: Table = {
    (1, WIDE, 80): Config(64, 32, 4, 2),
    (2, WIDE, 80): Config(64, 16, 4, 2),
    (3, WIDE, 80): Config(64, 16, 4, 2),
}
