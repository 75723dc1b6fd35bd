"""Numbers as the ops take them."""

from __future__ import annotations

import torch
from torch import Tensor


def as_tensor(value: float | Tensor) -> Tensor:
    """Return `value` as a 0-dim tensor, in which the C++ reads a number without a copy."""
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float64, device="cpu")
