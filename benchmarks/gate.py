"""Only correct providers are timed: their error is at most twice that of dense PyTorch.

Truth is float64. Truth and dense code use the formula written out below, in blocks of rows; up to
4096 rows there is one block. Beyond MOST_ROWS, that many rows (for a bank, as many pairs) are
checked, and at full size the providers must agree with the first of them.

The dense formula runs in the dtype of the embeddings; in half precision as under autocast:
similarities are half-precision products, rounded, and everything after is float32. On a GPU float32
products follow `torch.set_float32_matmul_precision`, for the dense formula and the providers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.problem import SIGLIP_BIAS, Problem
from benchmarks.providers import Provider, Step
from spcl_fast.precision import at_least_float32
from spcl_fast.testing import assert_within_budget

BLOCK_SIZE = 4096**2  # pairs per block
MOST_ROWS = 16384
AGREEMENT = 1e-4  # of the largest value, in float32
TF32_EPS = 2.0**-10


class RefusedError(Exception):
    """The error of the provider is beyond its budget."""


def exact(
    problem: Problem,
    z: Tensor,
    dtype: torch.dtype,
    *,
    normalise: bool = False,
    block_size: int = BLOCK_SIZE,
) -> tuple[Tensor, Tensor]:
    """Return the losses of the rows (n,) and the gradient of their mean, like z, in `dtype`.

    In half precision the losses are float32.
    """
    z = z.detach().to(dtype).requires_grad_()
    grad, losses = torch.zeros_like(at_least_float32(z)), []
    step_rows = max(1, block_size * problem.n // problem.num_pairs)
    for start in range(0, problem.n, step_rows):
        rows = torch.arange(start, min(start + step_rows, problem.n), device=z.device)
        unit = torch.nn.functional.normalize(z, dim=1) if normalise else z
        loss = losses_of(problem, rows, unit)
        grad += torch.autograd.grad(loss.sum() / problem.n, z)[0]
        losses.append(loss.detach())
    return torch.cat(losses), grad.to(dtype)


def losses_of(problem: Problem, rows: Tensor, z: Tensor) -> Tensor:
    """Return the losses of some rows, summed over the meta-labels."""
    if problem.kind == "siglip":
        return _sigmoid(problem, rows, z)
    if problem.kind == "clip":
        anchors, refs = z.chunk(2)
        return (_towards(problem, rows, anchors, refs) + _towards(problem, rows, refs, anchors)) / 2
    return _towards(problem, rows, z, z[problem.n :] if problem.num_refs else z)


def _sigmoid(problem: Problem, rows: Tensor, z: Tensor) -> Tensor:
    anchors, refs = z.chunk(2)
    logits = at_least_float32(anchors[rows] @ refs.T) / problem.tau + SIGLIP_BIAS
    own = rows[:, None] == torch.arange(problem.n, device=z.device)
    return torch.nn.functional.softplus(torch.where(own, -logits, logits)).sum(1)


def _towards(problem: Problem, rows: Tensor, z: Tensor, others: Tensor) -> Tensor:
    sim = at_least_float32(z[rows] @ others.T) / problem.tau  # (rows, columns)
    own = torch.zeros_like(sim, dtype=torch.bool)
    if not problem.num_refs:
        own = rows[:, None] == torch.arange(problem.n, device=z.device)
    pair_loss = sim.masked_fill(own, -torch.inf).logsumexp(1, keepdim=True) - sim
    weight = (1 - pair_loss.detach() / problem.gamma).clamp_min(0)
    several = problem.meta_labels() if problem.kind == "meta-labels" else {"": problem.labels()}
    loss = pair_loss.new_zeros(len(rows))
    for labels in several.values():
        columns = problem.ref_labels() if problem.num_refs else labels
        positive = (labels[rows, None] == columns) & ~own
        loss = loss + (weight * positive * pair_loss).sum(1) / positive.sum(1)
    return loss


class Gate:
    """Check providers on one problem.

    Args:
        problem: what they must compute.
        most_rows: rows that are checked against float64.
    """

    def __init__(self, problem: Problem, most_rows: int = MOST_ROWS) -> None:
        self.problem = problem
        self.checked = problem.at_most(most_rows)
        self.z = self.checked.embeddings()
        self.first: tuple[Tensor, Tensor] | None = None
        self._right: dict[bool, list[tuple[Tensor, Tensor]]] = {}
        self.agreement = AGREEMENT
        if problem.is_half:
            self.agreement = max(AGREEMENT, 4 * torch.finfo(problem.torch_dtype).eps)
        elif problem.device != "cpu" and torch.get_float32_matmul_precision() != "highest":
            self.agreement = 4 * TF32_EPS

    def admit(self, provider: Provider) -> tuple[Step, dict[str, float]]:
        """Return the step of `provider`, run once, and its errors over the largest true value.

        Raises:
            RefusedError: the loss or the gradient is wrong.
            UnavailableError: the provider cannot run here.
        """
        whole = self.checked.num_pairs == self.problem.num_pairs
        errors: dict[str, float] = {}
        if provider.is_loss and not whole:
            errors = self._errors(provider, provider.build(self.checked)(self.z))
        step = provider.build(self.problem)
        result = step(self.problem.embeddings())
        if provider.is_loss and whole:
            errors = self._errors(provider, result)
        elif provider.is_loss and not provider.normalises:
            self._agree(result)
        return step, errors

    def _errors(self, provider: Provider, result: tuple[Tensor, Tensor]) -> dict[str, float]:
        errors = {}
        right = self._truth_and_dense(provider.normalises)
        for name, actual, (truth, dense) in zip(("loss", "grad"), result, right, strict=True):
            if self.problem.is_half:  # the loss may be in half precision or float32
                actual = actual.to(dense.dtype)
            try:
                assert_within_budget(actual, truth, dense, name=name)
            except AssertionError as error:
                raise RefusedError(str(error)) from error
            wrong = (actual.double() - truth).abs().max() / truth.abs().max()
            errors[f"{name}_error"] = wrong.item()
        return errors

    def _truth_and_dense(self, normalise: bool) -> list[tuple[Tensor, Tensor]]:
        """Return truth and dense result, of the loss and of the gradient.

        The error of a mean can be 0 by luck: that of the dense loss is the mean error of its rows.
        """
        if normalise not in self._right:
            rows, grad = exact(self.checked, self.z, torch.float64, normalise=normalise)
            dtype = self.problem.torch_dtype
            dense_rows, dense_grad = exact(self.checked, self.z, dtype, normalise=normalise)
            loss = rows.mean()
            dense = (loss + (dense_rows - rows).abs().mean()).float()
            self._right[normalise] = [(loss, dense), (grad, dense_grad)]
        return self._right[normalise]

    def _agree(self, result: tuple[Tensor, Tensor]) -> None:
        self.first = self.first or result
        for name, actual, first in zip(("loss", "grad"), result, self.first, strict=True):
            wrong = ((actual.double() - first).abs().max() / first.abs().max()).item()
            if not wrong <= self.agreement:
                rows = self.problem.n
                raise RefusedError(f"{name}: {wrong:.1e} off the first provider at {rows} rows")
