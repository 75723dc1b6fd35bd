"""Configurations of the kernels of `pair_lse`, from what the compiler reports, not from times.

No entry spills unless it says so, and none repeats work: the MMAs of a tile over more warps than it
has pieces are done twice. BLOCK_M rows are owned: each visited row is read once per BLOCK_M.
"""

from __future__ import annotations

from collections.abc import Mapping

from spcl_fast.kernels._configs import Config, Key


def _half(table: dict[tuple[int, int], Config]) -> dict[Key, Config]:
    return {(name, *key): config for name in ("bf16", "fp16") for key, config in table.items()}


# BLOCK_D of all that a forward reads 64 features at a time.
WIDE = 512

FORWARD: Mapping[Key, Config] = {
    **_half(
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

# float32 at tf32x3 of more than 128 features has the kernels of kernels/_pair_lse_wide.py.
BY_ROWS: Mapping[Key, Config] = {
    **_half(
        {
            # 128 x 64 of h and 128 x BLOCK_D of dz over 8 warps: 255 registers hold them.
            (128, 80): Config(128, 64, 8, 3),
            # dz alone is 128 registers of each of 128 rows, and what is shifted spills beside it.
            (256, 80): Config(64, 32, 8, 2),
            (256, 90): Config(128, 32, 8, 2),
        }
    ),
    # Operands of float32 are twice as many registers.
    ("fp32 tf32", 128, 80): Config(64, 32, 4, 2),
    # z_j is written to shared memory transposed, once per BLOCK_M rows, with 7-way bank conflicts:
    # 0.55 wavefronts a pair; 32 rows have MMAs that need no such copy, but 0.97 wavefronts.
    ("fp32 tf32", 128, 90): Config(128, 32, 8, 2),
    ("fp32 tf32", 256, 80): Config(64, 16, 8, 2),
    ("fp32 tf32", 256, 90): Config(64, 64, 8, 2),
    ("fp32 tf32", 256, 120): Config(64, 16, 8, 2),  # that of sm_90 has 193 KiB
    ("fp32 tf32x3", 128, 80): Config(64, 16, 8, 2),
    ("fp32 ieee", 128, 80): Config(64, 32, 8, 2),  # with one stage sm_90 spills
    ("fp32 ieee", 256, 80): Config(64, 16, 8, 2),  # 64 x 32 spills
}
# Rows whose length or stride is no multiple of 16 bytes take more loads, and each has an address.
BY_ROWS_UNALIGNED: Mapping[Key, Config] = {
    **BY_ROWS,
    **_half({(128, arch): Config(64, 64, 8, 2) for arch in (80, 90)}),
    **_half({(256, arch): Config(64, 32, 8, 2) for arch in (80, 90)}),
    ("fp32 tf32", 128, 80): Config(64, 32, 8, 2),
    ("fp32 tf32", 128, 90): Config(64, 32, 8, 2),
}

# Without tf32x3, whose three products a pair leave no room for a third one.
BY_PAIRS: Mapping[Key, Config] = {
    **_half(
        {
            # 128 x 64 spills on sm_80, with references or compiled by Triton 3.6
            (128, 80): Config(128, 32, 8, 2),
            (128, 90): Config(128, 64, 8, 2),  # as by rows, and a tile of dz_j
            (256, 80): Config(32, 32, 4, 2),  # 64 rows spill or repeat products
            (256, 90): Config(128, 32, 8, 2),  # 176 KiB
            (256, 120): Config(32, 32, 4, 2),
        }
    ),
    ("fp32 tf32", 128, 80): Config(64, 32, 4, 2),
    ("fp32 tf32", 128, 90): Config(128, 32, 8, 2),  # as by rows; 160 KiB
    ("fp32 tf32", 128, 120): Config(64, 32, 4, 2),
    ("fp32 tf32", 256, 80): Config(64, 16, 8, 2),
    ("fp32 ieee", 128, 80): Config(64, 16, 8, 2),  # 64 x 32 spills, one stage does on sm_90
    ("fp32 ieee", 256, 80): Config(32, 16, 8, 1),  # 64 x 16 spills
}
BY_PAIRS_UNALIGNED: Mapping[Key, Config] = {
    **BY_PAIRS,
    **_half({(128, arch): Config(64, 64, 8, 2) for arch in (80, 90)}),
    **_half({(256, arch): Config(32, 32, 8, 2) for arch in (80, 90)}),  # repeats products on sm_80
    ("fp32 tf32", 128, 80): Config(64, 16, 8, 1),
    ("fp32 tf32", 128, 90): Config(64, 32, 8, 1),
}
