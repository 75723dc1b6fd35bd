"""Dense `pair_lse`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spcl_fast.precision import at_least_float32


def pair_lse(
    z: Tensor, tau: float | Tensor, refs: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Return `spcl_fast.ops.pair_lse` from the whole similarity matrix.

    Args:
        z: (N, D), floating; half precision is computed in float32.
        tau: temperature.
        refs: (M, D), or None for the square case.

    Returns:
        (N,), or the pair (N,), (M,) with `refs`.
    """
    z = at_least_float32(z)
    if refs is None:
        sim = z @ z.T / tau  # (N, N)
        diagonal = torch.eye(len(z), dtype=torch.bool, device=z.device)
        return sim.masked_fill(diagonal, -math.inf).logsumexp(1)
    sim = z @ at_least_float32(refs).T / tau  # (N, M)
    return sim.logsumexp(1), sim.logsumexp(0)
