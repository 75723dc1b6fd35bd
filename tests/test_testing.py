"""The error budgets: what the order of a sum explains passes, more than that and faults fail."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spcl_fast import reference
from spcl_fast.testing import assert_within_budget, make_embeddings, similarity_rounding


def orders_of_summation(z: Tensor, tau: float) -> list[Tensor]:
    """Return similarities by one product, by sums in three orders, and divided before them."""
    terms = z[:, None] * z  # (N, N, D)
    forward, backward = (sum(x.unbind(2), torch.zeros(())) for x in (terms, terms.flip(2)))
    return [z @ z.T / tau, forward / tau, backward / tau, terms.sum(2) / tau, (z / tau) @ z.T]


# Two features; as few as make most partial sums small; as many as a projector has.
@pytest.mark.parametrize("dim", [2, 5, 128])
@pytest.mark.parametrize("norm", [1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_order_of_a_sum_is_allowed(dim: int, norm: float, dtype: torch.dtype) -> None:
    tau = 0.005
    found = orders_of_summation(make_embeddings(67, dim, norm=norm, dtype=dtype), tau)
    apart = max((x - y).fill_diagonal_(0).abs().max().item() for x in found for y in found)
    rounding = similarity_rounding(norm**2 / tau, dtype)
    assert 0 < apart <= rounding  # and of that order of magnitude
    assert apart > rounding / 20


@pytest.mark.parametrize("tau", [0.005, 0.07, 10.0])
def test_an_error_somewhat_larger_fails(tau: float) -> None:
    truth = torch.full((2,), 0.25 / tau, dtype=torch.float64)
    eager, rounding = truth.float(), similarity_rounding(1 / tau)
    shift = torch.tensor([0, 1 / tau]) * torch.finfo(torch.float32).eps
    assert_within_budget((truth + 3 * shift).float(), truth, eager, rounding=rounding)
    with pytest.raises(AssertionError, match="exceeds budget"):
        assert_within_budget((truth + 6 * shift).float(), truth, eager, rounding=rounding)
    with pytest.raises(AssertionError, match="exceeds budget"):
        assert_within_budget((truth + 3 * shift).float(), truth, eager)


def faulty_gradient(z: Tensor, tau: float, dlse: Tensor, fault: str) -> tuple[Tensor, Tensor]:
    """Return lse and dz by the formula, with one fault known from kernels."""
    sim = z @ z.T / tau
    if fault != "diagonal left in":
        sim = sim.fill_diagonal_(-math.inf)
    lse = sim.logsumexp(1)
    h = (sim - lse[:, None]).exp() * dlse[:, None]
    if fault != "transposed term dropped":
        h = h + h.T
    return lse, h @ z if fault == "1 / tau dropped" else h @ z / tau


# The values at which a budget is widest and usual; two rows leave nothing but one pair.
@pytest.mark.parametrize("tau", [0.005, 0.07, 10.0])
@pytest.mark.parametrize("num_rows", [2, 5, 67])
@pytest.mark.parametrize(
    "fault", ["", "1 / tau dropped", "diagonal left in", "transposed term dropped"]
)
def test_faults_exceed_the_budget(fault: str, num_rows: int, tau: float) -> None:
    z, dlse = make_embeddings(num_rows, 5), torch.linspace(-1, 2, num_rows)

    def exact(dtype: torch.dtype) -> list[Tensor]:
        leaf = z.to(dtype).requires_grad_()
        lse = reference.pair_lse(leaf, tau)
        assert isinstance(lse, Tensor)
        return [lse.detach(), *torch.autograd.grad(lse, leaf, dlse.to(dtype))]

    def check() -> None:
        parts = zip(exact(torch.float64), exact(torch.float32), strict=True)
        for value, (truth, eager), is_lse in zip(
            faulty_gradient(z, tau, dlse, fault), parts, (True, False), strict=True
        ):
            size = 1.0 if is_lse else truth.abs().max().item()
            rounding = similarity_rounding(1 / tau) * size
            assert_within_budget(value, truth, eager, factor=3, rounding=rounding)

    if not fault:
        check()
        return
    with pytest.raises(AssertionError, match="exceeds budget"):
        check()
