"""What the host can know of tensors on a device, and sending them there."""

from __future__ import annotations

import torch
from torch import Tensor


def is_host(device: torch.device) -> bool:
    """Return whether values of tensors on `device` can be read without a synchronisation."""
    return device.type == "cpu"


def sent_to(device: torch.device, x: Tensor) -> Tensor:
    """Return a tensor of the host on a device, in a copy that the host does not wait for."""
    if device.type == "cuda" and is_host(x.device):
        x = x.pin_memory()  # from other memory a copy waits for all that runs on the device
    is_kept = device.type != "mps"  # which copies from memory that may be free by then
    return x.to(device, non_blocking=is_kept)
