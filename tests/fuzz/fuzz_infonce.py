"""Random pairs of InfoNCE, what the loss computes of them, and the dense formula.

L_a = mean_i lse_i - s_ii, h_ij = (p_ij - 1[i = j]) / N; the same of the columns, and the mean
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spcl_fast import InfoNCELoss

fuzz_cases: Any = importlib.import_module("fuzz_cases")
fuzz_dense: Any = importlib.import_module("fuzz_dense")


@dataclass(frozen=True)
class Case:
    """What a batch of pairs is made of."""

    seed: int
    sizes: tuple[int, ...]
    """Pairs of every rank."""
    others: int
    """References that are the positive of no anchor."""
    features: int
    dtype: torch.dtype
    stride: str
    norm: float
    copies: int
    tau: float
    learnable: bool
    symmetric: bool
    impl: Any


@dataclass
class Result:
    loss: float
    danchors: Tensor
    drefs: Tensor
    dlog_tau: float | None


def batch_of(case: Case) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(case.seed)
    N = sum(case.sizes)
    rows = fuzz_cases.random_rows(2 * N + case.others, case, generator)
    return fuzz_cases.strided(rows[:N], case.stride), rows[N:]


def run(case: Case, rows: slice = slice(None), group: Any = None) -> Result:
    """Return what the loss computes; of a rank with its pairs, their gradients."""
    anchors, refs = batch_of(case)
    N = len(anchors)
    options: dict[str, Any] = {"learnable_tau": case.learnable, "impl": case.impl, "group": group}
    loss = InfoNCELoss(case.tau, case.symmetric, **options)
    mine = anchors[rows].detach().requires_grad_()
    theirs = torch.cat([refs[:N][rows], refs[N:]]).detach().requires_grad_()
    out = loss(mine, theirs)
    out.loss.backward()
    log_tau = loss.temperature.log_tau
    return Result(
        out.loss.item(),
        fuzz_cases.gradient_or_zeros(mine),
        fuzz_cases.gradient_or_zeros(theirs),
        None if log_tau is None or log_tau.grad is None else log_tau.grad.item(),
    )


def run_rank(rank: int, world: int, case: Case) -> Result:
    start = sum(case.sizes[:rank])
    return run(case, slice(start, start + case.sizes[rank]), torch.distributed.group.WORLD)


def check(case: Case, result: Result) -> None:
    """Assert that a result is the dense one within the rounding of its similarities."""
    anchors, refs = (x.double() for x in batch_of(case))
    tau = torch.tensor(math.log(case.tau)).exp().item() if case.learnable else case.tau
    s = fuzz_dense.Similarities(anchors, refs, tau, case.dtype, case.impl)
    N, sim, eps = len(anchors), anchors @ refs.T / tau, torch.finfo(s.work).eps
    own, h, dh = torch.eye(N, len(refs)), torch.zeros_like(sim), torch.zeros_like(sim)
    directions, losses = (1, 0) if case.symmetric and len(refs) == N else (1,), []
    for dim in directions if N else ():
        p = sim.softmax(dim)
        losses.append((sim.logsumexp(dim)[:N] - sim.diagonal()).mean().item())
        h += (p - own) / N / len(directions)
        dh += (s.off_by(p) + s.rounding_of(p + own)) / N / len(directions)
    loss = sum(losses) / len(directions)
    assert abs(result.loss - loss) <= 2 * s.delta + 8 * eps * abs(loss), ("loss", result.loss, loss)
    of_anchors, of_refs = s.rows(h, dh)
    of_anchors.check(result.danchors)
    of_refs.check(result.drefs)
    if result.dlog_tau is not None:
        fuzz_dense.check_tau(result.dlog_tau, h, dh, sim, s.largest)
