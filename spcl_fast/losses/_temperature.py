"""The temperature of a loss: a number, or a parameter kept positive as its logarithm."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Temperature(nn.Module):
    """Hold tau.

    Args:
        tau: temperature, finite and above 0; the initial value if learnable.
        learnable: keep log tau as a parameter.

    Raises:
        ValueError: `tau` is not finite and above 0.
    """

    def __init__(self, tau: float, learnable: bool) -> None:
        super().__init__()
        if not 0 < tau < math.inf:
            raise ValueError(f"tau must be finite and above 0, got {tau}")
        self._fixed = float(tau)
        self.log_tau = nn.Parameter(torch.tensor(math.log(tau))) if learnable else None

    def forward(self) -> float | Tensor:
        """Return tau, a 0-dim tensor if learnable."""
        return self._fixed if self.log_tau is None else self.log_tau.exp()

    def extra_repr(self) -> str:
        """Return the initial value for `repr`."""
        return f"{self._fixed:g}, learnable={self.log_tau is not None}"
