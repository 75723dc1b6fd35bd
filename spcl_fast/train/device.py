"""The device of a run and torch's settings on it."""

from __future__ import annotations

from typing import Literal

import torch

Device = Literal["auto", "cpu", "cuda"]


def set_up_device(device: Device, threads: int = 0, *, deterministic: bool = False) -> torch.device:
    """Return the device of a run; set the number of CPU threads and determinism.

    Raises:
        ValueError: "cuda" is asked for and there is none, or threads is negative.
    """
    if threads < 0:
        raise ValueError(f"threads must be 0 or more, got {threads}")
    if threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ValueError("device must be cpu or auto on this machine, got cuda and torch sees none")
    return torch.device("cuda" if has_cuda and device != "cpu" else "cpu")
