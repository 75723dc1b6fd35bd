"""Whether the kernels for compute capability 9.0 run, in words for `spcl-fast info`."""

from __future__ import annotations

import math

import torch

from spcl_fast.kernels.hopper import _choice
from spcl_fast.kernels.pair_lse import pair_lse_bwd, pair_lse_fwd
from spcl_fast.operands import Pairs


def describe(device: torch.device) -> str:
    """Return whether these kernels run on a device, in words, after trying to."""
    if not _choice.is_for(device):
        return "not for this device"
    if not _choice.lack():
        rows = math.isqrt(_choice.MIN_PAIRS - 1) + 1
        z = torch.zeros(rows, 64, dtype=torch.bfloat16, device=device)
        lse = pair_lse_fwd(Pairs(z, None, 1.0), has_backward=True)
        given = Pairs(z, None, 1.0), lse, lse.rows, None
        pair_lse_bwd(*given, needs_z=True, needs_refs=False)
    return _choice.lack() or f"run on {device}"
