"""Rows against themselves and more columns, the form of a memory bank, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from pair_values import BF16, FP16, FP32, PRECISIONS, largest_similarity, products_of
from torch import Tensor

from spcl_fast.kernels._pair_sums import fill_lse
from spcl_fast.kernels._planes import planes_of
from spcl_fast.kernels._row_gradient import row_gradient_parts
from spcl_fast.kernels._row_weights import row_weights
from spcl_fast.kernels._similarities import PlanePairs
from spcl_fast.kernels.pair_lse import gradient_parts
from spcl_fast.testing import (
    assert_within_budget,
    make_embeddings,
    similarity_rounding,
)

Values = dict[str, Tensor]


def plane_pairs(z: Tensor, bank: Tensor, tau: float) -> PlanePairs:
    planes = planes_of(z, bank)
    return PlanePairs(planes, planes, len(z), len(z) + len(bank), tau, True)


def upstream(z: Tensor) -> Tensor:
    return torch.linspace(-1, 2, len(z), device=z.device)


def by_kernels(z: Tensor, bank: Tensor, tau: float) -> Values:
    """Return lse of the rows, and the gradients of rows and bank."""
    pairs = plane_pairs(z, bank, tau)
    lse, dlse = torch.empty(len(z), device=z.device), upstream(z)
    fill_lse(pairs, lse, None)
    nothing = lse.new_zeros(len(bank))
    weights = row_weights(pairs, lse, dlse, torch.cat([lse, nothing]), torch.cat([dlse, nothing]))
    dz = gradient_parts(pairs, weights, z.dtype).sum(0).to(z.dtype)
    dcols = gradient_parts(pairs.swapped(), weights.swapped(), z.dtype).sum(0).to(z.dtype)
    return {"lse": lse, "dz": dz, "dbank": dcols[len(z) :]}


def dense(z: Tensor, bank: Tensor, tau: float, dtype: torch.dtype) -> Values:
    leaves = [x.to(dtype).requires_grad_() for x in (z, bank)]
    wide = torch.promote_types(dtype, FP32)
    rows, more = (x.to(wide) for x in leaves)
    sim = rows @ torch.cat([rows, more]).T / tau
    place = torch.arange(len(z), device=z.device)
    lse = sim.index_put((place, place), sim.new_tensor(-math.inf)).logsumexp(1)
    dz, dbank = torch.autograd.grad(lse, leaves, upstream(z).to(wide))
    return {"lse": lse.detach(), "dz": dz, "dbank": dbank}


def check(z: Tensor, bank: Tensor, tau: float) -> None:
    actual, truth = by_kernels(z, bank, tau), dense(z, bank, tau, torch.float64)
    with products_of(z.dtype):
        eager = dense(z, bank, tau, z.dtype)
    largest = largest_similarity(z, tau, torch.cat([z, bank]))
    for name, value in actual.items():
        size = 1.0 if name == "lse" else truth[name].abs().max().item()
        rounding = similarity_rounding(largest) * size
        assert_within_budget(value, truth[name], eager[name], rounding=rounding, name=name)


# Several tiles, with the bank longer than the rows and shorter; without a shift, and with one.
@pytest.mark.parametrize(("dtype", "precision"), PRECISIONS[:-1])  # "medium" is "high"
@pytest.mark.parametrize(
    ("num_rows", "num_more", "dim", "tau"),
    [
        (97, 150, 50, 0.07),
        pytest.param(97, 150, 20, 0.005, marks=pytest.mark.breadth),
        pytest.param(150, 33, 128, 0.07, marks=pytest.mark.breadth),
        pytest.param(70, 60, 300, 0.07, marks=pytest.mark.breadth),
    ],
)
def test_more_columns_than_rows(
    dtype: torch.dtype,
    precision: str,
    num_rows: int,
    num_more: int,
    dim: int,
    tau: float,
    device: str,
) -> None:
    torch.set_float32_matmul_precision(precision)
    z = make_embeddings(num_rows, dim, dtype=dtype, device=device)
    check(z, make_embeddings(num_more, dim, dtype=dtype, device=device, seed=1), tau)


@pytest.mark.breadth
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize(("num_rows", "num_more"), [(1, 1), (1, 40), (33, 1), (15, 2), (32, 32)])
def test_sizes(dtype: torch.dtype, num_rows: int, num_more: int, device: str) -> None:
    z = make_embeddings(num_rows, 20, dtype=dtype, device=device)
    check(z, make_embeddings(num_more, 20, dtype=dtype, device=device, seed=1), 0.1)


# A bank of far longer rows makes all pairs unbounded.
@pytest.mark.breadth
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_a_bank_of_long_rows(dtype: torch.dtype, device: str) -> None:
    z = make_embeddings(50, 20, dtype=dtype, device=device)
    check(z, make_embeddings(70, 20, norm=100.0, dtype=dtype, device=device, seed=1), 0.07)


# Parts that several programs of a block give add up to the gradient of one.
@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_parts_of_a_gradient(
    dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, bank = (make_embeddings(n, 50, dtype=dtype, device=device, seed=n) for n in (97, 150))
    pairs = plane_pairs(z, bank, 0.07)
    lse, dlse = torch.empty(97, device=device), upstream(z)
    fill_lse(pairs, lse, None)
    nothing = lse.new_zeros(150)
    both = torch.cat([lse, nothing]), torch.cat([dlse, nothing])
    weights = row_weights(pairs, lse, dlse, *both)
    parts = row_gradient_parts(pairs, weights, dtype)
    assert parts.shape[0] > 1
    assert parts.dtype == FP32
    monkeypatch.setattr(PlanePairs, "num_programs", 1)
    whole = row_gradient_parts(pairs, weights, dtype)
    assert whole.shape == (1, 97, 50)
    assert whole.dtype == dtype
    torch.testing.assert_close(
        parts.sum(0).to(dtype), whole[0], rtol=4 * torch.finfo(dtype).eps, atol=1e-6
    )
