"""Block sizes and warps of the kernels, by dtype, padded feature size and architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton

from spcl_fast.kernels._tiles import dot_precision

Key = tuple[str, int, int]  # dtype and precision, BLOCK_D, architecture


@dataclass(frozen=True)
class Config:
    """How one kernel is launched."""

    block_m: int  # rows that one program owns
    block_n: int  # rows visited per step
    num_warps: int
    num_stages: int


_HALF = {torch.bfloat16: "bf16", torch.float16: "fp16"}
_OLDEST = 80
# Small enough that a few hundred rows make several tiles; warps and stages mean nothing there.
_INTERPRETED = Config(32, 32, 1, 1)

# What `_tuning` puts before the tables, by the name of the kernel, dtype_name and BLOCK_D.
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
        table: configurations by ("bf16", "fp16", "fp32 ieee", "fp32 tf32x3" or "fp32 tf32",
            BLOCK_D, 80 or 90). Without an entry for `block_d` the next larger one serves; of the
            architectures the nearest below.
        dtype: of the rows.
        block_d: features, padded.
        device: of the rows.

    Returns:
        What `tune` found, where `use_tuned_configs` switched that on; else the entry of the table.
        In the interpreter, small blocks.

    Raises:
        ValueError: `table` has nothing for the dtype, or nothing as large as `block_d`.
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
    """Return the name of a dtype in the tables; that of float32 follows the matmul precision."""
    return _HALF.get(dtype) or f"fp32 {dot_precision(dtype)}"


def architecture(device: torch.device) -> int:
    """Return the compute capability times ten; 80 on AMD, whose shared memory is smaller still."""
    if device.type == "cuda" and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(device)
        return 10 * major + minor
    target = triton.runtime.driver.active.get_current_target()
    return int(target.arch) if target.backend == "cuda" else _OLDEST
