"""The device of a run and torch's settings on it."""

from __future__ import annotations

import os
from typing import Literal

import torch

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]


def set_up_device(device: Device, threads: int = 0, *, deterministic: bool = False) -> torch.device:
    """Return the device of a run; set the number of CPU threads and determinism.

    Raises:
        ValueError: device is "cuda" and torch sees no CUDA device, there are fewer devices than
            processes of torchrun, or threads is negative.
    """
    if threads < 0:
        raise ValueError(f"threads must be 0 or more, got {threads}")
    if threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ValueError("device must be cpu or auto on this machine, got cuda and torch sees none")
    if not has_cuda or device == "cpu":
        return torch.device("cpu")
    if "LOCAL_RANK" in os.environ:  # of torchrun: a device for each process of a machine
        local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= count:
            raise ValueError(f"each process needs a CUDA device, got {count} for process {local}")
        torch.cuda.set_device(local)
    return torch.device("cuda")


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the mixed precision in which a network runs; "auto" is bfloat16 on CUDA, else none.

    Losses are computed in float32 regardless.
    """
    is_mixed = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=is_mixed)
