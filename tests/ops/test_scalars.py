"""Temperatures and paces at the ends of their ranges: one answer in every implementation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spcl_fast import SelfPacedContrastiveLoss, pair_lse, positive_pair_loss
from spcl_fast.ops import Impl, Label, contrastive_rows
from spcl_fast.pacing import pair_weights
from spcl_fast.pair_weights import Mode
from spcl_fast.testing import make_embeddings, make_labels

IMPLS = ["reference", "chunked", "native", "triton"]
Z, Y = make_embeddings(20, 8), make_labels(20, 4)


# Orthogonal pairs of equal rows: at a low temperature the losses of positives round to below 0.
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("gamma", [2.4e-3, 1e-6, 1e-30, 1e-300])
@pytest.mark.parametrize("mode", ["hard", "linear"])
def test_weights_are_at_most_1(impl: Impl, gamma: float, mode: Mode) -> None:
    tau = 0.005 if impl == "triton" else 0.0051
    z = make_embeddings(32, 16).repeat_interleave(2, 0).requires_grad_()
    labels = torch.arange(32).repeat_interleave(2)
    lse = pair_lse(z, tau, impl=impl)
    out = positive_pair_loss(z, lse, labels, tau=tau, gamma=gamma, mode=mode, impl=impl)
    weights = out.weight_sum / out.num_pos
    assert ((weights >= 0) & (weights <= 1)).all()
    (dz,) = torch.autograd.grad(out.loss.sum(), z)
    assert dz.abs().max() <= 2 * 2 / tau  # c w of both rows, and as much by lse
    _, (both,) = contrastive_rows(z, tau, [Label(labels, gamma)], mode=mode, impl=impl)
    (dz,) = torch.autograd.grad(both.loss.sum(), z)
    assert dz.abs().max() <= 2 * 2 / tau


def test_weights_of_losses_below_0() -> None:
    losses = torch.tensor([-1e-6, -0.0, 0.0, 1e-40, 1.0])
    for gamma in (1e-3, 1e-30, 1e-300):
        assert pair_weights(losses, gamma, "linear").tolist() == [1, 1, 1, 1, 0]


# Not above 0: a number is refused, a tensor, which may lie on a device, makes NaN of the results.
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_tensors_that_are_not_above_0(impl: Impl, value: float) -> None:
    bad = torch.tensor(value)
    for tau, gamma in ((bad, torch.tensor(3.0)), (torch.tensor(0.1), bad)):
        z = Z.clone().requires_grad_()
        lse = torch.full((20,), 4.0)
        losses = [
            positive_pair_loss(z, lse, Y, tau=tau, gamma=gamma, mode="linear", impl=impl).loss,
            contrastive_rows(z, tau, [Label(Y, gamma)], mode="linear", impl=impl)[1][0].loss,
        ]
        if tau is bad:
            losses.append(pair_lse(z, tau, impl=impl))
            losses.append(
                positive_pair_loss(z, lse, Y, tau=tau, gamma=3.0, mode="hard", impl=impl).loss
            )
        for loss in losses:
            assert loss.isnan().all()
    with pytest.raises(ValueError, match="tau must be finite and above 0"):
        pair_lse(Z, value, impl=impl)


@pytest.mark.parametrize("impl", ["reference", "chunked", "native", "triton"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_hard_weights_of_such_a_gamma(impl: Impl, value: float) -> None:
    lse, label = torch.full((20,), 4.0), Label(Y, torch.tensor(value))
    out = positive_pair_loss(Z, lse, Y, tau=0.1, gamma=label.gamma, mode="hard", impl=impl)
    _, (rows,) = contrastive_rows(Z, 0.1, [label], mode="hard", impl=impl)
    loss = SelfPacedContrastiveLoss(0.1, mode="hard", impl=impl)(Z, Y, label.gamma)
    for x in (out.loss, out.weight_sum, rows.loss, loss.loss, loss.objective, loss.mean_weight):
        assert x.isnan().all()


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_tensors_are_not_read(impl: Impl, forbid_waiting: Any, no_host_values: None) -> None:
    tau, gamma = torch.tensor(0.1, requires_grad=True), torch.tensor(3.0)
    with forbid_waiting():
        _, (out,) = contrastive_rows(Z, tau, [Label(Y, gamma)], mode="linear", impl=impl)
        out.loss.sum().backward()
    assert tau.grad is not None


# Not all are subclasses of float: numpy.float64 is.
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, np.int64, np.array, int])
def test_numbers_of_numpy(kind: Any) -> None:
    loss = SelfPacedContrastiveLoss(kind(1), window=kind(0))
    expected = SelfPacedContrastiveLoss(1.0, window=0.0)(Z, Y, 3.0, 2.0)
    z = Z.clone().requires_grad_()
    out = loss(z, Y, kind(3), kind(2))
    out.loss.backward()
    assert out.loss == expected.loss
    assert out.objective == expected.objective
    torch.testing.assert_close(pair_lse(Z, kind(2)), pair_lse(Z, 2.0), rtol=0, atol=0)


def test_an_infinite_pace_of_numpy() -> None:
    out = SelfPacedContrastiveLoss()(Z, Y, np.float32(math.inf))
    assert out.objective == out.loss


@pytest.mark.parametrize("bad", ["3", [3.0], np.array([3.0]), np.array(True), None, True, 3j])
def test_what_is_no_number(bad: Any) -> None:
    name = type(bad).__name__
    for call in (
        lambda: SelfPacedContrastiveLoss()(Z, Y, bad),
        lambda: SelfPacedContrastiveLoss(bad),
        lambda: pair_lse(Z, bad),
    ):
        with pytest.raises(TypeError, match=rf"must be a number or a 0-dim tensor, got {name}"):
            call()


def test_a_tensor_is_a_temperature_to_start_from() -> None:
    loss = SelfPacedContrastiveLoss(torch.tensor(0.5))  # type: ignore[arg-type]
    tau: float | Tensor = loss.temperature()
    assert tau == 0.5
