"""Random batches of the y-aware loss, what it computes of them, and the dense formula.

k_ij = exp(-(y_i - y_j)^2 / (2 sigma^2)) in float64, rounded to the dtype of the sums
h_ij = (p_ij - k_ij / sum_a k_ia) / anchors, over the rows whose sum of k is above 0
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spcl_fast import YAwareLoss

fuzz_cases: Any = importlib.import_module("fuzz_cases")
fuzz_dense: Any = importlib.import_module("fuzz_dense")


@dataclass(frozen=True)
class Case:
    """What a batch is made of."""

    seed: int
    size: int
    features: int
    dtype: torch.dtype
    stride: str
    norm: float
    copies: int
    tau: float
    learnable: bool
    sigma: float
    label_dtype: torch.dtype
    first_label: float
    impl: Any


@dataclass
class Result:
    loss: float
    num_anchors: int
    dz: Tensor
    dlog_tau: float | None


def batch_of(case: Case) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(case.seed)
    rows = fuzz_cases.random_rows(case.size, case, generator)
    steps = torch.randint(12, (case.size,), generator=generator)
    if not case.label_dtype.is_floating_point:
        first = int(case.first_label) if case.label_dtype in (torch.int64, torch.int32) else 0
        return fuzz_cases.strided(rows, case.stride), (first + steps).to(case.label_dtype)
    odd = torch.tensor([-1.0, math.nan, math.inf])[steps % 3]
    unknown = torch.rand(case.size, generator=generator) < 0.15
    first = case.first_label if case.label_dtype == torch.float64 else 0.0
    labels = torch.where(unknown, odd, first + steps.double() / 8)
    return fuzz_cases.strided(rows, case.stride), labels.to(case.label_dtype)


def run(case: Case) -> Result:
    z, labels = batch_of(case)
    loss = YAwareLoss(case.tau, case.sigma, learnable_tau=case.learnable, impl=case.impl)
    z = z.detach().requires_grad_()
    out = loss(z, labels)
    out.loss.backward()
    log_tau = loss.temperature.log_tau
    return Result(
        out.loss.item(),
        int(out.num_anchors),
        fuzz_cases.gradient_or_zeros(z),
        None if log_tau is None or log_tau.grad is None else log_tau.grad.item(),
    )


def check(case: Case, result: Result) -> None:
    """Assert that a result is the dense one within the rounding of its similarities."""
    z, labels = (x.double() for x in batch_of(case))
    tau = torch.tensor(math.log(case.tau)).exp().item() if case.learnable else case.tau
    s = fuzz_dense.Similarities(z, z, tau, case.dtype, case.impl)
    N, limits = len(z), torch.finfo(s.work)
    diagonal = torch.eye(N, dtype=torch.bool)
    known = (labels >= 0) & labels.isfinite() & ~diagonal & (labels[:, None] >= 0)
    known &= labels[:, None].isfinite()
    k = torch.exp(((labels[:, None] - labels) / case.sigma).square() / -2)
    k = torch.where(known, k, 0).to(s.work).double()
    total = k.sum(1, keepdim=True)
    total = torch.where(total >= limits.tiny, total, 0)
    c = torch.where(total > 0, k / total, 0)
    dc = c * (8 + N) * limits.eps + torch.where(c > 0, limits.eps, 0)  # of subnormal numbers

    sim = (z @ z.T / tau).masked_fill(diagonal, -math.inf)
    lse = sim.logsumexp(1, keepdim=True)
    loss = torch.where(known, lse - sim, 0)
    anchors = total > 0
    count = max(int(anchors.sum()), 1)
    mean = ((c * loss).sum(1).sum() / count).item()
    error = ((dc * loss.abs()).sum() / count).item() + 3 * s.delta + 8 * limits.eps * abs(mean)
    assert result.num_anchors == int(anchors.sum())
    assert abs(result.loss - mean) <= error, ("loss", result.loss, mean)
    p = torch.where(diagonal | ~anchors, 0.0, (sim - lse).exp()).nan_to_num()
    h, dh = (p - c) / count, (s.off_by(p) + dc + s.rounding_of(p + c)) / count
    rows, others = s.rows(h, dh)
    (rows + others).check(result.dz)
    if result.dlog_tau is not None:
        sim = sim.masked_fill(diagonal, 0.0)
        fuzz_dense.check_tau(result.dlog_tau, h, dh, sim, s.largest)
