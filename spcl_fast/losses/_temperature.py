"""The temperature of a loss: a number, or a parameter kept positive as its logarithm."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from spcl_fast.ops._checks import positive_number


class Temperature(nn.Module):
    """Hold tau.

    Args:
        tau: temperature, finite and above 0; the initial value if learnable.
        learnable: keep log tau as a parameter.

    Raises:
        TypeError: `tau` is not a number.
        ValueError: `tau` is not finite and above 0.
    """

    def __init__(self, tau: float, *, learnable: bool) -> None:
        super().__init__()
        if isinstance(tau, Tensor) and tau.numel() == 1:
            tau = tau.item()
        self._fixed = positive_number("tau", tau)
        start = torch.tensor(math.log(self._fixed)) if learnable else None
        self.log_tau = None if start is None else nn.Parameter(start)

    def forward(self) -> float | Tensor:
        """Return tau, a 0-dim tensor if learnable."""
        return self._fixed if self.log_tau is None else self.log_tau.exp()

    __call__ = forward  # what else a module does in a call takes as long as three launches

    def extra_repr(self) -> str:
        """Return the initial value for `repr`."""
        return f"{self._fixed:g}, learnable={self.log_tau is not None}"


def tau_of(loss: nn.Module) -> float | Tensor:
    """Return tau of a loss; `loss.temperature` is looked for everywhere else first."""
    temperature: Any = loss._modules["temperature"]
    tau: float | Tensor = temperature()
    return tau
