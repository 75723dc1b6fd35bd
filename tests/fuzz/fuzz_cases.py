"""Random batches, the loss of them by a dense formula in float64, and what rounding explains.

s_ij = z_i . r_j / tau          off by delta = 4 eps max |z_i| |r_j| / tau; rows and bank
l_ij = lse_i - s_ij             off by 2 delta
w_ij = 1[l_ij <= gamma], or 1 - l_ij / gamma in [0, 1]      off by 2 delta / gamma, up to 1
h_ij = c_i (W_i p_ij - w_ij), c_i = 1 / (anchors |P(i)|), W_i = sum_j w_ij
dz_i = sum_j (h_ij + h_ji) r_j / tau
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spcl_fast import SelfPacedContrastiveLoss
from spcl_fast.testing import similarity_rounding


@dataclass(frozen=True)
class Case:
    """What a batch is made of; everything else follows from the seed."""

    seed: int
    sizes: tuple[int, ...]
    """Rows of every rank."""
    bank: int | None
    features: int
    dtype: torch.dtype
    stride: str
    norm: float
    copies: int
    """Rows that are equal to another one."""
    tau: float
    learnable: bool
    gamma: float
    gamma_is_tensor: bool
    mode: Any
    label_dtype: torch.dtype
    classes: int
    window: float | None
    impl: Any


@dataclass
class Batch:
    z: Tensor
    labels: Tensor
    bank: Tensor | None
    bank_labels: Tensor | None


@dataclass
class Result:
    loss: float
    mean_weight: float
    num_anchors: int
    dz: Tensor
    dbank: Tensor | None
    dlog_tau: float | None


def batch_of(case: Case) -> Batch:
    generator = torch.Generator().manual_seed(case.seed)
    N = sum(case.sizes)
    rows = torch.randn(N + (case.bank or 0), case.features, generator=generator)
    rows = case.norm * torch.nn.functional.normalize(rows, dim=1)
    for k in range(min(case.copies, len(rows))):
        rows[k] = rows[len(rows) - 1 - k]
    rows = rows.to(case.dtype)
    labels = _labels(case, len(rows), generator)
    bank = None if case.bank is None else rows[N:]
    return Batch(_strided(rows[:N], case.stride), labels[:N], bank, labels[N:])


def _labels(case: Case, num_rows: int, generator: torch.Generator) -> Tensor:
    values = torch.randint(case.classes, (num_rows,), generator=generator)
    unknown = torch.rand(num_rows, generator=generator) < 0.15
    if case.label_dtype.is_floating_point:
        positions = values / 4
        odd = torch.tensor([-1.0, math.nan, math.inf])[values % 3]
        return torch.where(unknown, odd, positions).to(case.label_dtype)
    if case.label_dtype in (torch.uint8, torch.bool):
        return values.to(case.label_dtype)
    return torch.where(unknown, -1 - values, values).to(case.label_dtype)


def _strided(x: Tensor, stride: str) -> Tensor:
    if stride == "columns":
        return x.T.contiguous().T
    if stride == "every other":
        wide = x.new_full((2 * len(x), 2 * x.shape[1]), math.nan)
        wide[::2, ::2] = x
        return wide[::2, ::2]
    if stride == "expanded" and len(x):
        return x[:1].expand(len(x), -1)
    return x


def run(case: Case, rows: slice = slice(None), group: Any = None) -> Result:
    """Return what the loss computes; of a rank with its rows, dz of these."""
    batch = batch_of(case)
    loss = SelfPacedContrastiveLoss(
        case.tau,
        case.mode,
        window=case.window,
        learnable_tau=case.learnable,
        impl=case.impl,
        group=group,
    )
    z = batch.z[rows].detach().requires_grad_()
    bank = None if batch.bank is None else batch.bank.detach().requires_grad_()
    banked: Any = {} if bank is None else {"bank": bank, "bank_labels": batch.bank_labels}
    gamma: Any = torch.tensor(case.gamma) if case.gamma_is_tensor else case.gamma
    out = loss(z, batch.labels[rows], gamma, **banked)
    out.loss.backward()
    log_tau = loss.temperature.log_tau
    return Result(
        out.loss.item(),
        out.mean_weight.item(),
        int(out.num_anchors),
        _or_zeros(z),
        None if bank is None else _or_zeros(bank),
        None if log_tau is None or log_tau.grad is None else log_tau.grad.item(),
    )


def _or_zeros(x: Tensor) -> Tensor:
    return torch.zeros_like(x) if x.grad is None else x.grad


def run_rank(rank: int, world: int, case: Case) -> Result:
    start = sum(case.sizes[:rank])
    rows = slice(start, start + case.sizes[rank])
    return run(case, rows, torch.distributed.group.WORLD)


def check(case: Case, result: Result) -> None:
    """Assert that a result is the dense one within the rounding of its similarities."""
    batch = batch_of(case)
    dense = Dense(case, batch)
    assert result.num_anchors == dense.num_anchors
    assert abs(result.loss - dense.loss) <= dense.loss_error, ("loss", result.loss, dense.loss)
    assert -1e-6 <= result.mean_weight <= 1 + 1e-6
    assert abs(result.mean_weight - dense.mean_weight) <= dense.weight_error, (
        "mean weight",
        result.mean_weight,
        dense.mean_weight,
    )
    of_rows = [
        (result.dz, dense.dz, dense.dz_error),
        (result.dbank, dense.dbank, dense.dbank_error),
    ]
    for actual, expected, error in of_rows:
        if actual is None or expected is None:
            continue
        budget = error[:, None] + dense.half_eps * (expected.abs() + error[:, None])
        wrong = (actual.double() - expected).abs() - budget
        assert not wrong.numel() or (wrong <= 0).all(), ("gradient", wrong.max().item())
    if result.dlog_tau is not None:
        wrong = abs(result.dlog_tau - dense.dlog_tau)
        assert wrong <= dense.tau_error, ("dlog_tau", result.dlog_tau, dense.dlog_tau)


class Dense:
    """The formula, and bounds of what rounding may change."""

    def __init__(self, case: Case, batch: Batch) -> None:
        work = torch.float64 if case.dtype == torch.float64 else torch.float32
        eps = torch.finfo(work).eps
        tau = torch.tensor(math.log(case.tau)).exp().item() if case.learnable else case.tau
        gamma = torch.tensor(case.gamma).item() if case.gamma_is_tensor else case.gamma
        z = batch.z.double()
        refs = z if batch.bank is None else torch.cat([z, batch.bank.double()])
        labels = (
            batch.labels if batch.bank is None else torch.cat([batch.labels, batch.bank_labels])
        )
        N, M = len(z), len(refs)
        diagonal = torch.eye(N, M, dtype=torch.bool)
        sim = (z @ refs.T / tau).masked_fill(diagonal, -math.inf)
        lse = sim.logsumexp(1)
        positive = _positive(labels, case.window)[:N] & ~diagonal
        loss = torch.where(positive, lse[:, None] - sim, 0.0)
        weight = (1 - loss / gamma).clamp(0, 1)
        if case.mode == "hard":
            weight = (loss <= gamma).double()
        weight = torch.where(positive, weight, 0.0)

        largest = (z.norm(dim=1).max() * refs.norm(dim=1).max() / tau).item() if N else 0.0
        # the log of a sum of M terms, and with it a loss of no similarity, is rounded too
        delta = similarity_rounding(largest, work) + 4 * eps * (1 + math.log(M + 1))
        if case.mode == "hard":
            dw = ((loss - gamma).abs() <= 2 * delta).double()
        else:
            dw = torch.full_like(loss, min(1.0, 2 * delta / gamma)) * (loss < gamma + 2 * delta)
        dw = torch.where(positive, dw, 0.0)

        num_pos = positive.sum(1).double()
        self.num_anchors = int((num_pos > 0).sum())
        c = torch.where(num_pos > 0, 1 / num_pos.clamp_min(1), 0.0) / max(self.num_anchors, 1)
        self.loss = (c[:, None] * weight * loss).sum().item()
        errors = dw * (loss + 2 * delta) + weight * 2 * delta
        self.loss_error = (c[:, None] * errors).sum().item() + 8 * eps * abs(self.loss)
        total = max(int(num_pos.sum()), 1)
        self.mean_weight = weight.sum().item() / total
        self.weight_error = dw.sum().item() / total + 8 * eps

        p = torch.where(diagonal, 0.0, (sim - lse[:, None]).exp()).nan_to_num()
        dp = (p * math.expm1(min(2 * delta, 50.0))).clamp_max(1.0)
        h = c[:, None] * (weight.sum(1, keepdim=True) * p - weight)
        dh = c[:, None] * (
            weight.sum(1, keepdim=True) * dp
            + dw.sum(1, keepdim=True) * (p + dp)
            + dw
            + 8 * eps * (weight.sum(1, keepdim=True) * p + weight)
        )
        all_rows = self._gradient(h, z, refs) / tau
        errors = self._gradient(dh, z.norm(dim=1), refs.norm(dim=1)) / tau
        errors = errors * (1 + M * eps) + torch.finfo(work).tiny
        limits = torch.finfo(case.dtype)
        self.half_eps = limits.eps
        errors = errors + limits.tiny * limits.eps  # subnormal numbers
        self.dz, self.dz_error = all_rows[:N], errors[:N]
        self.dbank, self.dbank_error = (
            (None, None) if batch.bank is None else (all_rows[N:], errors[N:])
        )
        self.dlog_tau = -(h * sim.masked_fill(diagonal, 0.0)).sum().item()
        self.tau_error = (dh * largest).sum().item() + 1e-6 * abs(self.dlog_tau) + 1e-6 * largest

    @staticmethod
    def _gradient(h: Tensor, z: Tensor, refs: Tensor) -> Tensor:
        """Return sum_j h_ij r_j of the rows, and sum_i h_ij z_i of all that they meet."""
        out = h.T @ z
        out[: len(z)] += h @ refs
        return out


def _positive(labels: Tensor, window: float | None) -> Tensor:
    if window is None:
        values = labels.long()
        return (values[:, None] == values) & (values >= 0)[:, None] & (values >= 0)
    exact = labels.double()
    known = (exact >= 0) & exact.isfinite()
    distance = (exact[:, None] - exact).abs()
    return (distance <= window) & known[:, None] & known
