"""What every loss has in common: gradients of similarities, and what rounding explains of them.

s_ij = z_i . r_j / tau          off by delta = 4 eps max |z_i| |r_j| / tau; rows and bank
lse_i = log sum_j exp(s_ij)     off by delta, and by the rounding of the logarithm of M terms
dz_i = sum_j h_ij r_j / tau, dr_j = sum_i h_ij z_i / tau, where h = dL/ds
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spcl_fast.testing import similarity_rounding


@dataclass
class Similarities:
    """Rows of float64 and what they are compared with."""

    z: Tensor  # (N, D)
    refs: Tensor  # (M, D)
    tau: float
    dtype: torch.dtype
    """Of the rows as they were given."""
    impl: str

    @property
    def work(self) -> torch.dtype:
        """In which results are accumulated."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def largest(self) -> float:
        if 0 in (len(self.z), len(self.refs)):
            return 0.0
        return (self.z.norm(dim=1).max() * self.refs.norm(dim=1).max() / self.tau).item()

    @property
    def delta(self) -> float:
        """How far a similarity, its log-sum-exp or a difference of both may be off."""
        eps = torch.finfo(self.work).eps
        rounded_sum = 4 * eps * (1 + math.log(len(self.refs) + 1))
        return similarity_rounding(self.largest, self.work) + rounded_sum

    def off_by(self, p: Tensor) -> Tensor:
        """Return how far a softmax (N, M) may be off."""
        return (p * math.expm1(min(2 * self.delta, 50.0))).clamp_max(1.0)

    def rounding_of(self, parts: Tensor) -> Tensor:
        """Return how far sums of parts that cancel may be off, h among them."""
        terms = max(len(self.z), len(self.refs))
        eps = (8 + 2 * math.sqrt(terms)) * torch.finfo(self.work).eps
        if self.impl == "triton" and self.dtype in (torch.float16, torch.bfloat16):
            eps += torch.finfo(self.dtype).eps / 2  # tensor cores take h in the dtype of the rows
        return eps * parts

    def rows(self, h: Tensor, dh: Tensor) -> tuple[Gradient, Gradient]:
        """Return the gradients of the rows and of the references."""
        lengths = self.z.norm(dim=1), self.refs.norm(dim=1)
        limits = torch.finfo(self.work)
        smallest = torch.finfo(self.dtype)
        count = 1 + max(len(self.z), len(self.refs)) * limits.eps
        rest = limits.tiny + smallest.tiny * smallest.eps  # subnormal numbers
        dh = dh + limits.tiny
        if self.dtype == torch.float64:
            dh = 2 * dh  # what is held to be true is rounded alike
        return (
            Gradient(h @ self.refs / self.tau, dh @ lengths[1] / self.tau * count + rest, self),
            Gradient(h.T @ self.z / self.tau, dh.T @ lengths[0] / self.tau * count + rest, self),
        )


@dataclass
class Gradient:
    """Of rows, and how far each element of a row may be off."""

    value: Tensor  # (rows, D)
    error: Tensor  # (rows,)
    of: Similarities

    def __add__(self, other: Gradient) -> Gradient:
        return Gradient(self.value + other.value, self.error + other.error, self.of)

    def check(self, actual: Tensor) -> None:
        error = self.error[:, None]
        budget = error + torch.finfo(self.of.dtype).eps * (self.value.abs() + error)
        wrong = (actual.double() - self.value).abs() - budget
        assert not wrong.numel() or (wrong <= 0).all(), ("gradient", wrong.max().item())


def check_tau(actual: float, h: Tensor, dh: Tensor, sim: Tensor, largest: float) -> None:
    """Assert that a gradient in log tau is -sum_ij h_ij s_ij."""
    expected = -(h * sim).sum().item()
    error = (dh * largest).sum().item() + 1e-6 * abs(expected) + 1e-6 * largest
    assert abs(actual - expected) <= error, ("dlog_tau", actual, expected)
