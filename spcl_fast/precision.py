"""Dtypes and autocast: similarities are accumulated in at least float32, regardless of autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# Asked once: the Dynamo of torch 2.11 does not trace the question.
_TYPES = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia")
_WITH_AUTOCAST = frozenset(x for x in _TYPES if torch.amp.is_autocast_available(x))


def at_least_float32(x: Tensor) -> Tensor:
    """Return float16 and bfloat16 as float32 (differentiable), float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def dtype_of_results(x: Tensor) -> torch.dtype:
    """Return the dtype of losses and log-sum-exps of rows `x`: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def accumulator_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which `torch.autocast` of the device leaves matrix products alone."""
    if device.type not in _WITH_AUTOCAST:
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
