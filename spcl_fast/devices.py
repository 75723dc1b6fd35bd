"""What the host can know of tensors on a device."""

from __future__ import annotations

import torch


def is_host(device: torch.device) -> bool:
    """Return whether values of tensors on `device` can be read without a synchronisation."""
    return device.type == "cpu"
