"""What is known of a GPU without waiting for it."""

from __future__ import annotations

import torch


def capability(device: torch.device) -> tuple[int, int] | None:
    """Return the compute capability of `device`, None where there is no such GPU to ask."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(device)  # torch.compile sees a constant
    return found.major, found.minor
