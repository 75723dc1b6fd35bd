"""Random batches of the self-paced loss, what it computes of them, and the dense formula.

l_ij = lse_i - s_ij             off by 2 delta
w_ij = 1[l_ij <= gamma], or 1 - l_ij / gamma in [0, 1]      off by 2 delta / gamma, up to 1
h_ij = c_i (W_i p_ij - w_ij), c_i = 1 / (anchors |P(i)|), W_i = sum_j w_ij
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spcl_fast import MemoryQueue, SelfPacedContrastiveLoss

fuzz_dense: Any = importlib.import_module("fuzz_dense")


@dataclass(frozen=True)
class Case:
    """What a batch is made of; everything else follows from the seed."""

    seed: int
    sizes: tuple[int, ...]
    """Rows of every rank."""
    bank: int | None
    queue: tuple[int, ...] | None
    """Sizes of the batches that were put in a queue of `bank` rows, which is the bank then."""
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
    bank_label_dtype: torch.dtype
    classes: int
    first_class: int
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
    """Return the rows; where there is a queue, `bank` is all that was ever put in."""
    generator = torch.Generator().manual_seed(case.seed)
    N = sum(case.sizes)
    num_others = (case.bank or 0) if case.queue is None else sum(case.queue)
    rows = random_rows(N + num_others, case, generator)
    values = torch.randint(case.classes, (len(rows),), generator=generator)
    unknown = torch.rand(len(rows), generator=generator) < 0.15
    z, labels = strided(rows[:N], case.stride), _labels(case, values[:N], unknown[:N])
    if case.bank is None:
        return Batch(z, labels, None, None)
    others = _labels(case, values[N:], unknown[N:], case.bank_label_dtype)
    return Batch(z, labels, rows[N:], others)


def random_rows(count: int, case: Any, generator: torch.Generator) -> Tensor:
    """Return rows of one length, some of them twice."""
    rows = torch.randn(count, case.features, generator=generator)
    rows = case.norm * torch.nn.functional.normalize(rows, dim=1)
    for k in range(min(case.copies, len(rows))):
        rows[k] = rows[len(rows) - 1 - k]
    return rows.to(case.dtype)


def _labels(
    case: Case, values: Tensor, unknown: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    dtype = dtype or case.label_dtype
    first = case.first_class if dtype in (torch.int64, torch.int32, torch.float64) else 0
    if dtype.is_floating_point:
        odd = torch.tensor([-1.0, math.nan, math.inf])[values % 3]
        return torch.where(unknown, odd, first + values.double() / 4).to(dtype)
    if dtype in (torch.uint8, torch.bool):
        return values.to(dtype)
    return torch.where(unknown, -1 - values, first + values).to(dtype)


def strided(x: Tensor, stride: str) -> Tensor:
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
    bank, banked = None, {}
    if batch.bank is not None and case.queue is not None:
        queue = _queue(case, batch)
        banked = {"bank": queue.rows, "bank_labels": queue.labels}
    elif batch.bank is not None:
        bank = batch.bank.detach().requires_grad_()
        banked = {"bank": bank, "bank_labels": batch.bank_labels}
    gamma: Any = torch.tensor(case.gamma) if case.gamma_is_tensor else case.gamma
    out = loss(z, batch.labels[rows], gamma, **banked)
    out.loss.backward()
    log_tau = loss.temperature.log_tau
    return Result(
        out.loss.item(),
        out.mean_weight.item(),
        int(out.num_anchors),
        gradient_or_zeros(z),
        None if bank is None else gradient_or_zeros(bank),
        None if log_tau is None or log_tau.grad is None else log_tau.grad.item(),
    )


def _queue(case: Case, batch: Batch) -> MemoryQueue:
    label_dtype = torch.float64 if case.bank_label_dtype.is_floating_point else torch.int64
    queue = MemoryQueue(case.bank or 1, case.features, label_dtype=label_dtype, dtype=case.dtype)
    sizes = list(case.queue or ())
    assert batch.bank is not None
    assert batch.bank_labels is not None
    for z, labels in zip(batch.bank.split(sizes), batch.bank_labels.split(sizes), strict=True):
        queue.enqueue(z, labels)
    return queue


def gradient_or_zeros(x: Tensor) -> Tensor:
    return torch.zeros_like(x) if x.grad is None else x.grad


def run_rank(rank: int, world: int, case: Case) -> Result:
    start = sum(case.sizes[:rank])
    rows = slice(start, start + case.sizes[rank])
    return run(case, rows, torch.distributed.group.WORLD)


def check(case: Case, result: Result) -> None:
    """Assert that a result is the dense one within the rounding of its similarities."""
    dense = Dense(case, batch_of(case))
    assert result.num_anchors == dense.num_anchors
    assert abs(result.loss - dense.loss) <= dense.loss_error, ("loss", result.loss, dense.loss)
    assert -1e-6 <= result.mean_weight <= 1 + 1e-6
    assert abs(result.mean_weight - dense.mean_weight) <= dense.weight_error, (
        "mean weight",
        result.mean_weight,
        dense.mean_weight,
    )
    dense.dz.check(result.dz)
    if result.dbank is not None:
        dense.dbank.check(result.dbank)
    if result.dlog_tau is not None:
        fuzz_dense.check_tau(
            result.dlog_tau, dense.h, dense.dh, dense.sim, dense.similarities.largest
        )


class Dense:
    """The formula, and bounds of what rounding may change."""

    def __init__(self, case: Case, batch: Batch) -> None:
        tau = torch.tensor(math.log(case.tau)).exp().item() if case.learnable else case.tau
        gamma = torch.tensor(case.gamma).item() if case.gamma_is_tensor else case.gamma
        z, exact = batch.z.double(), torch.int64 if case.window is None else torch.float64
        refs, labels = z, batch.labels.to(exact)
        if batch.bank is not None and batch.bank_labels is not None:
            last = len(batch.bank) if case.queue is None else case.bank or 1
            refs = torch.cat([z, batch.bank[-last:].double()])
            labels = torch.cat([labels, batch.bank_labels[-last:].to(exact)])
        self.similarities = s = fuzz_dense.Similarities(z, refs, tau, case.dtype, case.impl)
        N, eps, delta = len(z), torch.finfo(s.work).eps, s.delta
        diagonal = torch.eye(N, len(refs), dtype=torch.bool)
        sim = (z @ refs.T / tau).masked_fill(diagonal, -math.inf)
        lse = sim.logsumexp(1)
        positive = _positive(labels, case.window)[:N] & ~diagonal
        loss = torch.where(positive, lse[:, None] - sim, 0.0)
        weight = (1 - loss / gamma).clamp(0, 1)
        if case.mode == "hard":
            weight = (loss <= gamma).double()
            dw = ((loss - gamma).abs() <= 2 * delta).double()
        else:
            dw = torch.full_like(loss, min(1.0, 2 * delta / gamma)) * (loss < gamma + 2 * delta)
        weight, dw = torch.where(positive, weight, 0.0), torch.where(positive, dw, 0.0)

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
        dp, W = s.off_by(p), weight.sum(1, keepdim=True)
        self.sim = sim.masked_fill(diagonal, 0.0)
        self.h = c[:, None] * (W * p - weight)
        self.dh = c[:, None] * (
            W * dp + dw.sum(1, keepdim=True) * (p + dp) + dw + s.rounding_of(W * p + weight)
        )
        rows, others = s.rows(self.h, self.dh)
        self.dz = rows + fuzz_dense.Gradient(others.value[:N], others.error[:N], s)
        self.dbank = fuzz_dense.Gradient(others.value[N:], others.error[N:], s)


def _positive(labels: Tensor, window: float | None) -> Tensor:
    known = (labels >= 0) & labels.isfinite()
    distance = (labels[:, None] - labels).abs()
    return (distance <= (window or 0)) & known[:, None] & known
