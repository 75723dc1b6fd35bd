"""Time and memory of a step on a CPU or a CUDA device, behind one interface.

On a CUDA device the time is measured between two events around the step, after a buffer larger
than the L2 cache was overwritten; if the host launches more slowly than the device computes, it is
the time of the host. A ceiling is what the device reaches in the same rounds: the best torch.mm of
a few shapes, and the rate of copying memory (bytes read and written).
"""

from __future__ import annotations

import ctypes
import functools
import math
import re
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks._provenance import processor
from spcl_fast.ops import _triton

CLEAR_REFS = Path("/proc/self/clear_refs")  # Linux only
SGEMM_SHAPES = ((2048, 2048, 2048), (4096, 1024, 4096), (8192, 256, 8192), (8192, 8192, 256))
MM_SHAPES = ((8192, 8192, 8192), (16384, 1024, 16384), (16384, 128, 16384), (16384, 16384, 128))
LEAST_SGEMM_ROWS = 4096  # large products between steps of microseconds would empty their caches
COPY_MIB = 1024
L2_MIB = 256  # more than the L2 cache of any GPU so far
MEMORY_SHARE = 0.8  # of a GPU, for one provider


@dataclass(frozen=True)
class Ceiling:
    """Work that shows the limit of a device."""

    kind: Literal["mm", "copy"]
    amount: float
    """Flops, or bytes read and written."""
    run: Callable[[], object]


class Device(ABC):
    """One kind of device.

    Args:
        where: device of the tensors.
    """

    name: str

    def __init__(self, where: str) -> None:
        self.where = where

    @abstractmethod
    def lacks(self) -> str:
        """Return why this device cannot be used here, "" if it can."""

    @abstractmethod
    def synchronise(self) -> None:
        """Wait until all work is done."""

    @abstractmethod
    def time_ms(self, run: Callable[[], object]) -> float:
        """Return the milliseconds of one warm call."""

    @abstractmethod
    def can_weigh(self) -> bool:
        """Return whether peak memory can be measured."""

    @abstractmethod
    def reset_peak(self) -> float:
        """Reset the peak; return the memory in use now, in MiB."""

    @abstractmethod
    def peak_mib(self) -> float:
        """Return the peak since `reset_peak`, in MiB."""

    @abstractmethod
    def ceilings(self, rows: int, dtype: torch.dtype) -> dict[str, Ceiling]:
        """Return the ceilings to time with a problem of `rows` in `dtype`, warm, by name."""

    @abstractmethod
    def memory_mib(self) -> float:
        """Return the default memory limit of a provider."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return the description of the device for a result file."""

    @abstractmethod
    def slug(self) -> str:
        """Return the name of its folder in benchmarks/results."""


class Cpu(Device):
    """The CPU: wall time, resident memory, sgemm."""

    name = "cpu"

    def __init__(self) -> None:
        super().__init__("cpu")

    def lacks(self) -> str:
        return ""

    def synchronise(self) -> None:
        pass

    def time_ms(self, run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)

    def can_weigh(self) -> bool:
        return CLEAR_REFS.exists()

    def reset_peak(self) -> float:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
        if trim is not None:
            trim(0)  # what torch.compile used must not hide what the step needs
        held = status_mib("VmRSS")
        CLEAR_REFS.write_text("5", encoding="ascii")  # resets VmHWM
        return held

    def peak_mib(self) -> float:
        return status_mib("VmHWM")

    def ceilings(self, rows: int, dtype: torch.dtype) -> dict[str, Ceiling]:
        # Half precision is computed in float32.
        return (
            products(SGEMM_SHAPES, torch.ones, torch.float32, "cpu")
            if rows >= LEAST_SGEMM_ROWS
            else {}
        )

    def memory_mib(self) -> float:
        return 8192.0

    def facts(self) -> dict[str, Any]:
        return {}

    def slug(self) -> str:
        return as_slug(processor().split(" x ")[0])


class Cuda(Device):
    """The current CUDA device: events, allocator, torch.mm and a copy in the dtype."""

    name = "cuda"

    def __init__(self, where: str = "cuda") -> None:
        super().__init__(where)

    def lacks(self) -> str:
        if torch.cuda.is_available():
            return ""
        return "--device must be cpu where there is no CUDA device, got cuda"

    def synchronise(self) -> None:
        torch.cuda.synchronize()

    def time_ms(self, run: Callable[[], object]) -> float:
        event = functools.partial(torch.cuda.Event, enable_timing=True)
        start, end = event(), event()
        self._cold.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    @functools.cached_property
    def _cold(self) -> Tensor:
        return torch.empty(L2_MIB * 2**20, dtype=torch.uint8, device=self.where)

    def can_weigh(self) -> bool:
        return True

    def reset_peak(self) -> float:
        self.synchronise()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20

    def peak_mib(self) -> float:
        self.synchronise()
        return torch.cuda.max_memory_allocated() / 2**20

    def ceilings(self, rows: int, dtype: torch.dtype) -> dict[str, Ceiling]:
        # A GPU that multiplies equal numbers draws less power and clocks higher.
        return products(MM_SHAPES, torch.randn, dtype, self.where) | {
            "copy": copy(dtype, self.where)
        }

    def memory_mib(self) -> float:
        total: int = torch.cuda.get_device_properties().total_memory
        return MEMORY_SHARE * total / 2**20

    def facts(self) -> dict[str, Any]:
        properties = torch.cuda.get_device_properties()
        return {
            "device": {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "multiprocessors": properties.multi_processor_count,
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "driver": driver(),
                "cuda": torch.version.cuda,
                "triton": _triton.version() or "not installed",
            }
        }

    def slug(self) -> str:
        return as_slug(torch.cuda.get_device_properties().name)


DEVICES: dict[str, Callable[[], Device]] = {"cpu": Cpu, "cuda": Cuda}


def products(
    shapes: tuple[tuple[int, int, int], ...],
    fill: Callable[..., Tensor],
    dtype: torch.dtype,
    where: str,
) -> dict[str, Ceiling]:
    """Return a product of every shape into preallocated memory, warm."""
    ceilings = {}
    for rows, inner, cols in shapes:
        sizes = ((rows, inner), (inner, cols), (rows, cols))
        a, b, out = (fill(size, dtype=dtype, device=where) for size in sizes)
        run = functools.partial(torch.mm, a, b, out=out)
        run()
        amount = 2.0 * math.prod((rows, inner, cols))
        ceilings[f"{rows} x {inner} x {cols}"] = Ceiling("mm", amount, run)
    return ceilings


def copy(dtype: torch.dtype, where: str) -> Ceiling:
    """Return a copy of COPY_MIB, warm."""
    source = torch.ones(COPY_MIB * 2**20 // dtype.itemsize, dtype=dtype, device=where)
    run = functools.partial(torch.empty_like(source).copy_, source)
    run()
    return Ceiling("copy", 2.0 * source.nbytes, run)


def status_mib(key: str) -> float:
    """Return a field of /proc/self/status in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status must have {key}, got none")


def driver() -> str:
    """Return the version of the NVIDIA driver, "unknown" without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.splitlines()[0].strip() if found.stdout.strip() else "unknown"


def as_slug(name: str) -> str:
    """Return a name in lower case, with - for everything but letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
