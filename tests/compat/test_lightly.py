"""`NTXentLoss` of lightly against lightly, with and without a bank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from spcl_fast.compat.lightly import NTXentLoss
from spcl_fast.testing import make_embeddings

Check = Callable[..., None]


# Sharp to flat; rows of another length are normalised; one row is its own positive: loss 0.
@pytest.mark.parametrize("tau", [0.01, 0.07, 0.5, 5.0])
@pytest.mark.parametrize("norm", [0.1, 1.0, 30.0])
@pytest.mark.parametrize(("B", "D"), [(1, 3), (2, 8), (33, 16)])
def test_equals_lightly(
    tau: float, norm: float, B: int, D: int, lightly_loss: Any, assert_same: Check
) -> None:
    views = [make_embeddings(B, D, norm=norm, seed=seed) for seed in (B, B + 1)]
    assert_same(NTXentLoss(tau), lightly_loss(tau), *views, scale=1 / (tau * norm))


# 3 and 5 rows a batch fill a bank of 8 with and without a rest; 12 rows overflow it.
@pytest.mark.parametrize("batch", [3, 4, 5, 8, 12])
@pytest.mark.parametrize("tau", [0.01, 0.5, 5.0])
def test_bank_equals_lightly_over_steps(batch: int, tau: float, lightly_loss: Any) -> None:
    ours, theirs = NTXentLoss(tau, (8, 6)), lightly_loss(tau, (8, 6))
    torch.testing.assert_close(ours.memory_bank.bank.norm(dim=1), torch.ones(8))
    theirs.memory_bank.bank.copy_(ours.memory_bank.bank)
    for step in range(7):
        results = []
        for loss in (ours, theirs):
            # step 3 evaluates: it must leave the bank alone
            leaves = [make_embeddings(batch, 6, norm=3, seed=2 * step + k) for k in range(2)]
            if step != 3:
                leaves = [x.requires_grad_() for x in leaves]
            value = loss(*leaves)
            gradients = torch.autograd.grad(value, leaves) if step != 3 else ()
            results.append((value, *gradients))
        torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5 / tau)
        assert torch.equal(ours.memory_bank.bank_ptr, theirs.memory_bank.bank_ptr)
        torch.testing.assert_close(ours.memory_bank.bank, theirs.memory_bank.bank)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == []


@pytest.mark.usefixtures("no_host_values")
def test_nothing_waits_for_the_device(forbid_waiting: Any) -> None:
    z = make_embeddings(8, 4).requires_grad_()
    for size in (0, (16, 4)):
        loss = NTXentLoss(0.5, size, impl="chunked")
        with forbid_waiting():
            loss(z, z)


# Sizes that lightly refuses too.
@pytest.mark.parametrize("size", [-1, (4,), (-2, 3), (2, 3, 4)])
def test_raises_for_a_size(size: Any) -> None:
    with pytest.raises(ValueError, match="memory_bank_size must be rows or"):
        NTXentLoss(memory_bank_size=size)


# As lightly took it before 1.6: the same loss as of a bank of that size.
@pytest.mark.parametrize("size", [8, np.int64(8)])
def test_a_number_of_rows(size: Any) -> None:
    with pytest.warns(UserWarning, match="leaves the features to the first batch"):
        loss = NTXentLoss(0.5, size)
    expected = NTXentLoss(0.5, (8, 6))
    views = [make_embeddings(3, 6, seed=k).requires_grad_() for k in range(2)]
    loss(views[0].detach(), views[1])  # makes the rows
    assert loss.memory_bank.bank.shape == (8, 6)
    torch.testing.assert_close(loss.memory_bank.bank.norm(dim=1), torch.ones(8))
    expected.memory_bank.bank.copy_(loss.memory_bank.bank)
    for _ in range(3):
        torch.testing.assert_close(loss(*views), expected(*views), rtol=0, atol=0)


def test_raises() -> None:
    for tau in (0.0, -0.5, float("nan")):
        with pytest.raises(ValueError, match="temperature must be at least 1e-8"):
            NTXentLoss(tau)
    with pytest.raises(ValueError, match=r"out1 must be \(2, 3\) as out0"):
        NTXentLoss()(torch.ones(2, 3), torch.ones(3, 3))
