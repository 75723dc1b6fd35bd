"""Labels as other libraries take them: of any dtype; only equality matters, and none is unknown."""

from __future__ import annotations

import torch
from torch import Tensor


def class_indices(*labels: Tensor) -> list[Tensor]:
    """Number the classes of all the labels together, from 0 on, without waiting for the device.

    Args:
        labels: (N,) each, of one device; NaN equals nothing.

    Returns:
        (N,) int64 each, equal where the labels are.
    """
    joined = torch.cat(labels)
    values, order = joined.sort()
    index = torch.zeros_like(order)
    if joined.numel() > 1:
        index[1:] = (values[1:] != values[:-1]).cumsum(0)
    numbered = torch.empty_like(order).scatter_(0, order, index)
    return list(torch.split(numbered, [x.shape[0] for x in labels]))
