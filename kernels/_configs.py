"""Which configuration a kernel is launched with; the tables are in kernels/_config_tables.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton

from spcl_fast.kernels._features import dot_precision

Key = tuple[str, int, int]  # dtype and precision, BLOCK_D, architecture


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


_HALF_PRECISION = {torch.bfloat16: "bf16", torch.float16: "fp16"}
_OLDEST = 80
# Small enough that a few hundred rows make several tiles; it ignores warps and stages.
_INTERPRETED = Config(32, 32, 1, 1)

# Overrides of the tables, by kernel name, dtype_name and BLOCK_D; filled by `_tuning`.
tuned: dict[tuple[str, str, int], Config] = {}


def pick(
    kernel: str,
    table: Mapping[Key, Config],
    dtype: torch.dtype,
    block_d: int,
    device: torch.device,
) -> Config:
    """Return the configuration of `kernel` for rows of `dtype` padded to `block_d` features.

    Args:
        kernel: its name, in messages and for `tune`.
        table: configurations by dtype_name, BLOCK_D and architecture. The entry of the smallest
            BLOCK_D of at least `block_d` is used, and of its architectures the nearest one that is
            not newer than the device, or else the oldest.
        dtype: of the rows.
        block_d: padded features.
        device: of the rows.

    Returns:
        What `tune` found, if `use_tuned_configs` is on; otherwise the entry of the table. In the
        interpreter, small blocks.

    Raises:
        ValueError: `table` has no entry for the dtype, or none with a BLOCK_D of `block_d` or more.
    """
    if triton.knobs.runtime.interpret:
        return _INTERPRETED
    name = dtype_name(dtype)
    if (kernel, name, block_d) in tuned:
        return tuned[kernel, name, block_d]
    sizes = [size for known, size, _ in table if known == name and size >= block_d]
    if not sizes:
        raise ValueError(f"block_d must be in the table of {kernel} for {name}, got {block_d}")
    size = min(sizes)
    archs = sorted(arch for known, of_size, arch in table if (known, of_size) == (name, size))
    below = [arch for arch in archs if arch <= architecture(device)]
    return table[name, size, below[-1] if below else archs[0]]


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name in the tables: bf16, fp16, fp32 ieee, fp32 tf32x3 or fp32 tf32."""
    return _HALF_PRECISION.get(dtype) or f"fp32 {dot_precision(dtype)}"


def architecture(device: torch.device) -> int:
    """Return ten times the compute capability; 80 on AMD, which has even less shared memory."""
    if device.type == "cuda" and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(device)
        return 10 * major + minor
    target = triton.runtime.driver.active.get_current_target()
    return int(target.arch) if target.backend == "cuda" else _OLDEST
