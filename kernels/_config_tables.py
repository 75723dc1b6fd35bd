"""The configurations of all kernels, chosen from what the compiler reports, not from times.

Spills, repeated products and shared memory are those of Triton 3.8 for sm_80 and sm_90. Unless its
comment says otherwise an entry neither spills nor repeats products: with more warps than a tile
has pieces, some pieces are multiplied twice. BLOCK_M rows are owned by a program and BLOCK_N are
visited per step; a visited row is read once per BLOCK_M owned rows.
"""

from __future__ import annotations

from collections.abc import Mapping

from spcl_fast.kernels._configs import Config, Key

Table = Mapping[Key, Config]


def _half_precision(table: Mapping[tuple[int, int], Config]) -> dict[Key, Config]:
    """Return the entries, by BLOCK_D and architecture, of both: they differ in one instruction."""
    return {(name, *key): config for name in ("bf16", "fp16") for key, config in table.items()}


# The BLOCK_D under which PAIR_LSE_FORWARD has wide rows, for any number of features.
WIDE = 512

PAIR_LSE_FORWARD: Table = {
    **_half_precision(
        {
            # 64 visited rows over 4 warps leave registers for the sums of 128 owned ones, twice.
            (64, 80): Config(128, 64, 4, 3),
            (128, 80): Config(128, 64, 4, 3),
            # Two programs a multiprocessor still fit in shared memory.
            (256, 80): Config(64, 64, 4, 2),
            (WIDE, 80): Config(128, 64, 4, 3),
        }
    ),
    ("fp32 tf32", 128, 80): Config(64, 64, 4, 2),  # two programs in shared memory
    ("fp32 tf32", 256, 80): Config(64, 32, 4, 2),  # what fits in shared memory
    ("fp32 tf32", 256, 90): Config(64, 64, 4, 2),
    ("fp32 tf32", WIDE, 80): Config(64, 64, 4, 2),
    # Three MMAs a product: both halves of the operands are in registers, which 4 warps spill.
    ("fp32 tf32x3", 128, 80): Config(64, 32, 8, 1),
    ("fp32 tf32x3", WIDE, 80): Config(64, 32, 4, 1),
    # No MMAs: few sums a thread, or the operands spill.
    ("fp32 ieee", 256, 80): Config(64, 32, 8, 1),
    ("fp32 ieee", WIDE, 80): Config(64, 32, 8, 1),
}

PAIR_LSE_BY_ROWS: Table = {
    **_half_precision(
        {
            # 128 x 64 of h and 128 x BLOCK_D of dz over 8 warps: 255 registers hold them.
            (128, 80): Config(128, 64, 8, 3),
            # For 128 rows dz alone takes 128 registers, and the code for shifted sums then spills.
            (256, 80): Config(64, 32, 8, 2),
            (256, 90): Config(128, 32, 8, 2),
        }
    ),
    # Operands of float32 are twice as many registers.
    ("fp32 tf32", 128, 80): Config(64, 32, 4, 2),
    # z_j is copied to shared memory transposed, with bank conflicts, once per BLOCK_M rows. Of 32
    # rows no copy is needed, but more passes through shared memory in all (docs/kernels.md).
    ("fp32 tf32", 128, 90): Config(128, 32, 8, 2),
    ("fp32 tf32", 256, 80): Config(64, 16, 8, 2),
    ("fp32 tf32", 256, 90): Config(64, 64, 8, 2),
    ("fp32 tf32", 256, 120): Config(64, 16, 8, 2),  # that of sm_90 does not fit
    ("fp32 tf32x3", 128, 80): Config(64, 16, 8, 2),
    ("fp32 ieee", 128, 80): Config(64, 32, 8, 2),  # with one stage sm_90 spills
    ("fp32 ieee", 256, 80): Config(64, 16, 8, 2),  # 64 x 32 spills
}
# Rows whose length or stride is no multiple of 16 bytes take more loads, and each has an address.
PAIR_LSE_BY_ROWS_UNALIGNED: Table = {
    **PAIR_LSE_BY_ROWS,
    **_half_precision(
        {
            (128, 80): Config(64, 64, 8, 2),
            (128, 90): Config(64, 64, 8, 2),
            (256, 80): Config(64, 32, 8, 2),
            (256, 90): Config(64, 32, 8, 2),
        }
    ),
    ("fp32 tf32", 128, 80): Config(64, 32, 8, 2),
    ("fp32 tf32", 128, 90): Config(64, 32, 8, 2),
}

# None for tf32x3, whose three MMAs a product leave no registers for the product of dz_j.
PAIR_LSE_BY_PAIRS: Table = {
    **_half_precision(
        {
            # 128 x 64 spills on sm_80, with references or compiled by Triton 3.6
            (128, 80): Config(128, 32, 8, 2),
            (128, 90): Config(128, 64, 8, 2),  # as by rows, and a tile of dz_j
            (256, 80): Config(32, 32, 4, 2),  # 64 rows spill or repeat products
            (256, 90): Config(128, 32, 8, 2),
            (256, 120): Config(32, 32, 4, 2),  # that of sm_90 does not fit
        }
    ),
    ("fp32 tf32", 128, 80): Config(64, 32, 4, 2),
    ("fp32 tf32", 128, 90): Config(128, 32, 8, 2),  # as by rows
    ("fp32 tf32", 128, 120): Config(64, 32, 4, 2),  # that of sm_90 does not fit
    ("fp32 tf32", 256, 80): Config(64, 16, 8, 2),
    ("fp32 ieee", 128, 80): Config(64, 16, 8, 2),  # 64 x 32 spills; so does one stage on sm_90
    ("fp32 ieee", 256, 80): Config(32, 16, 8, 1),  # 64 x 16 spills
}
PAIR_LSE_BY_PAIRS_UNALIGNED: Table = {
    **PAIR_LSE_BY_PAIRS,
    **_half_precision(
        {
            (128, 80): Config(64, 64, 8, 2),
            (128, 90): Config(64, 64, 8, 2),
            (256, 80): Config(32, 32, 8, 2),  # repeats products
            (256, 90): Config(32, 32, 8, 2),
        }
    ),
    ("fp32 tf32", 128, 80): Config(64, 16, 8, 1),
    ("fp32 tf32", 128, 90): Config(64, 32, 8, 1),
}

# The backward of wide rows: a panel of h, and the product of one with other rows. All fit into the
# 99 KiB of shared memory of the smallest GPUs (sm_86, sm_89 and sm_120), as do those below.
PAIR_LSE_H_PANEL: Table = {
    **_half_precision({(64, 80): Config(128, 128, 8, 3)}),  # a fourth stage does not fit
    ("fp32 tf32", 64, 80): Config(128, 64, 8, 2),  # 128 x 128 does not fit on sm_90
    ("fp32 tf32x3", 32, 80): Config(128, 64, 8, 2),  # 128 x 128 spills
    ("fp32 ieee", 32, 80): Config(64, 64, 8, 2),  # 4 warps take 255 registers
}
PAIR_LSE_PANEL_PRODUCT: Table = {("fp16", 64, 80): Config(128, 128, 8, 3)}  # a larger tile spills

# 64 rows: more would visit more columns that are positive for none of their labels.
POSITIVE_FORWARD: Table = {
    **_half_precision(
        {
            (64, 80): Config(64, 64, 4, 3),  # room for three stages
            (128, 80): Config(64, 64, 4, 2),  # a third stage would cost a program
            (256, 80): Config(64, 32, 4, 2),  # 64 x 64 spills in what Triton 3.6 compiles
            (256, 90): Config(64, 64, 4, 2),
        }
    ),
    ("fp32 tf32", 64, 80): Config(64, 64, 4, 2),
    ("fp32 tf32", 128, 80): Config(64, 32, 4, 2),  # 64 x 64 leaves room for one program less
    ("fp32 tf32", 256, 80): Config(64, 16, 4, 2),  # 64 x 32 does not fit on sm_90
    ("fp32 tf32x3", 64, 80): Config(64, 32, 4, 2),
    ("fp32 tf32x3", 128, 80): Config(64, 16, 4, 2),  # 64 x 32 spills on sm_80
    ("fp32 tf32x3", 128, 90): Config(64, 32, 4, 2),
    ("fp32 ieee", 128, 80): Config(64, 64, 8, 2),
    ("fp32 ieee", 128, 90): Config(64, 32, 8, 2),  # 64 x 64 spills in what Triton 3.6 compiles
}
POSITIVE_BACKWARD: Table = {
    **_half_precision(
        {
            (128, 80): Config(64, 32, 4, 3),  # 64 x 64 spills on sm_80
            (128, 90): Config(64, 64, 4, 2),
            (256, 80): Config(64, 32, 4, 1),  # two stages spill
            (256, 90): Config(128, 32, 8, 2),  # 64 x 32 reads twice as often
        }
    ),
    # 32 rows on sm_90: of 64 the second product of a tile takes z_j transposed, which is copied to
    # shared memory with bank conflicts.
    ("fp32 tf32", 64, 80): Config(64, 32, 4, 2),
    ("fp32 tf32", 64, 90): Config(32, 64, 4, 2),
    ("fp32 tf32", 128, 80): Config(64, 32, 4, 2),
    ("fp32 tf32", 128, 90): Config(32, 64, 4, 2),
    ("fp32 tf32", 256, 80): Config(32, 32, 4, 2),  # the largest that neither spills nor repeats
    ("fp32 tf32x3", 64, 80): Config(64, 16, 4, 2),  # 64 x 32 spills
    ("fp32 tf32x3", 64, 90): Config(32, 32, 4, 1),  # two stages spill
    ("fp32 tf32x3", 128, 80): Config(64, 16, 4, 2),  # 64 x 32 spills
    ("fp32 tf32x3", 128, 90): Config(64, 32, 4, 1),  # 32 x 64 and two stages spill
    ("fp32 ieee", 64, 80): Config(32, 32, 4, 2),  # 64 x 32 spills
    ("fp32 ieee", 128, 80): Config(64, 32, 8, 2),  # 64 x 64 spills
    ("fp32 ieee", 128, 90): Config(32, 32, 4, 2),  # 64 x 32 spills
}

# As POSITIVE_FORWARD with fewer columns: the counts take registers too.
HISTOGRAM: Table = {
    **_half_precision({(256, 80): Config(64, 32, 4, 2)}),
    ("fp32 tf32", 128, 80): Config(64, 32, 4, 2),
    ("fp32 tf32", 256, 80): Config(64, 16, 4, 1),  # two stages do not fit on sm_90
    ("fp32 tf32x3", 256, 80): Config(64, 16, 4, 2),
    ("fp32 ieee", 256, 80): Config(32, 32, 4, 2),
}
