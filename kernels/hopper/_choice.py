"""Where the kernels for compute capability 9.0 run: this file alone decides it.

Times of one H100 chose the tiles of one plane, measured with kernels that lacked the diagonal, the
ragged end and the shifted sums; the others, and those of wide rows, are what fits into 227 KiB of
shared memory and spills no registers. Rows that the tables lack are left to the plain kernels.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from triton.errors import TritonError

from spcl_fast.kernels import _configs
from spcl_fast.kernels._bound import Bound
from spcl_fast.kernels._planes import Planes
from spcl_fast.kernels._similarities import PlanePairs

ARCHITECTURE = 90
# A step of fewer is the host's time whichever kernels run, and these take longer to compile.
MIN_PAIRS = 1 << 24


@dataclass(frozen=True)
class Tiles:
    """How one kernel is launched."""

    block_m: int  # rows that one program owns
    block_n: int  # rows of a tile that is visited
    stages: int  # tiles in the ring
    groups: int = 2  # of warps that multiply
    parts: int = 1  # of a tile of the gradient, visited one after the other
    shifted_parts: int = 2  # the same where sums are shifted, which takes more registers
    fma_exps: int = 0  # of 16 exponentials of whole tiles of sums, by multiply-adds


WIDE = 0  # longer rows than a program holds
Table = Mapping[tuple[int, int], Tiles]  # by planes and padded features

# Groups take turns: a place in the ring must always be one group's, or it could take the phase
# before for the one that it waits for. So stages are a multiple of groups.
PAIR_SUMS: Table = {
    (1, 64): Tiles(128, 64, 6, groups=3, fma_exps=3),
    (1, 128): Tiles(128, 64, 6, groups=3),
    (1, 256): Tiles(128, 64, 4),
    (2, 64): Tiles(128, 64, 6),
    (2, 128): Tiles(128, 64, 4),
    (2, 256): Tiles(64, 64, 2),
    (3, 64): Tiles(128, 64, 6),
    (3, 128): Tiles(128, 64, 2),
    (1, WIDE): Tiles(128, 128, 6),
    (2, WIDE): Tiles(128, 128, 3),
    (3, WIDE): Tiles(128, 128, 2),
}
ROW_GRADIENT: Table = {
    (1, 64): Tiles(256, 64, 6),
    (1, 128): Tiles(128, 128, 3),
    (1, 256): Tiles(128, 64, 3, parts=2, shifted_parts=4),
    (2, 64): Tiles(128, 128, 3),
    (2, 128): Tiles(128, 64, 3),
    (2, 256): Tiles(128, 32, 2, shifted_parts=1),
    (3, 64): Tiles(128, 64, 3),
    (3, 128): Tiles(128, 64, 2),
}
H_PANEL: Table = {
    (1, WIDE): Tiles(256, 128, 4),
    (2, WIDE): Tiles(128, 128, 3),
    (3, WIDE): Tiles(128, 128, 2),
}

_lack: str | None = None  # not asked yet


def lack() -> str:
    """Return why these kernels do not run with this Triton, "" if nothing is known against it."""
    global _lack
    if _lack is None:
        _lack = ""
        try:
            importlib.import_module("spcl_fast.kernels.hopper._gluon")
        except (ImportError, AttributeError) as error:
            _lack = f"this Triton has no Gluon for them ({error})"
    return _lack


def tiles_for(table: Table, pairs: PlanePairs) -> Tiles | None:
    """Return the tiles for the rows of `pairs`, None if a plain kernel is to run."""
    if pairs.num_rows * pairs.num_cols < MIN_PAIRS or not is_for(pairs.rows.data.device):
        return None
    found = table.get(place_of(pairs.rows))
    return None if found is None or lack() else found


def place_of(rows: Planes) -> tuple[int, int]:
    """Return where a table has the tiles for rows."""
    return rows.num_planes, WIDE if rows.is_wide else rows.padded_dim


def is_for(device: torch.device) -> bool:
    """Return whether a device, or what stands in for one, has capability 9.0."""
    return not _configs.IS_INTERPRETED and _configs.architecture(device) == ARCHITECTURE


def compiles(kernel: Bound, grid: tuple[int, ...], *args: Any, **constants: Any) -> bool:
    """Launch a kernel, and return whether it compiled; once one does not, none runs any more."""
    global _lack
    try:
        kernel[grid](*args, **constants)
    except (TritonError, RuntimeError) as error:
        # The passes of the compiler raise a RuntimeError, as a device that has failed does.
        if not isinstance(error, TritonError) and "PassManager" not in str(error):
            raise
        _lack = f"{kernel.__name__} does not compile ({type(error).__name__})"
        text = f"the kernels for compute capability 9.0 are left out: {_lack}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        return False
    return True
