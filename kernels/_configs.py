"""Which configuration a kernel is launched with; the tables are in kernels/_config_tables.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton

from spcl_fast.kernels._planes import Planes

Key = tuple[int, int, int]  # planes, padded features, architecture


@dataclass(frozen=True)
class Config:
    """How one kernel is launched."""

    block_m: int  # rows that one program owns
    block_n: int  # rows visited per step
    num_warps: int
    num_stages: int

    def launch_options(self) -> dict[str, int]:
        """Return the keywords of a launch."""
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


IS_INTERPRETED: bool = triton.knobs.runtime.interpret  # as the decorators of kernels saw it
_OLDEST = 80
# Small enough that a few hundred rows make several tiles; it ignores warps and stages.
_INTERPRETED = Config(64, 32, 1, 1)


def pick(kernel: str, table: Mapping[Key, Config], rows: Planes, device: torch.device) -> Config:
    """Return the configuration of `kernel` for `rows`.

    Args:
        kernel: its name, in messages.
        table: configurations by number of planes, padded features and architecture. The entry of
            the smallest number of features of at least those of the rows is used, and of its
            architectures the nearest one that is not newer than the device, or else the oldest.
        rows: what it reads.
        device: of the rows.

    Returns:
        The entry of the table; in the interpreter, small blocks.

    Raises:
        ValueError: `table` has no entry for so many planes, or none for so many features.
    """
    if IS_INTERPRETED:
        return _INTERPRETED
    return _entry(kernel, table, rows.num_planes, rows.padded_dim, architecture(device))


_found: dict[tuple[str, int, int, int, int], Config] = {}


def _entry(kernel: str, table: Mapping[Key, Config], planes: int, dim: int, arch: int) -> Config:
    place = kernel, id(table), planes, dim, arch
    if place in _found:
        return _found[place]
    sizes = [size for known, size, _ in table if known == planes and size >= dim]
    if not sizes:
        raise ValueError(f"rows must be in the table of {kernel}, got {planes} planes of {dim}")
    size = min(sizes)
    archs = sorted(arch for known, of_size, arch in table if (known, of_size) == (planes, size))
    below = [older for older in archs if older <= arch]
    _found[place] = table[planes, size, below[-1] if below else archs[0]]
    return _found[place]


def architecture(device: torch.device) -> int:
    """Return ten times the compute capability; 80 on AMD, which has even less shared memory."""
    if device.type == "cuda" and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(device)
        return 10 * major + minor
    target = triton.runtime.driver.active.get_current_target()
    return int(target.arch) if target.backend == "cuda" else _OLDEST
