"""`YAwareLoss`: the dense formula in float64, its limits, unknown labels, several panels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spcl_fast import SupConLoss, YAwareLoss
from spcl_fast.losses import y_aware
from spcl_fast.testing import make_embeddings


def dense(z: torch.Tensor, y: torch.Tensor, tau: float, sigma: float) -> torch.Tensor:
    """The formula, row by row."""
    rows = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        s = torch.stack([z[i] @ z[j] / tau for j in others])
        k = torch.stack([torch.exp(-((y[i] - y[j]) ** 2) / (2 * sigma**2)) for j in others])
        k = torch.where((y[others] >= 0) & (y[i] >= 0), k, 0)
        if k.sum() > 0:
            rows.append((k * (torch.logsumexp(s, 0) - s)).sum() / k.sum())
    return torch.stack(rows).mean()


# one panel, and panels of 4 rows whose last is not full
@pytest.mark.parametrize("panel_rows", [1024, 4])
@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_equals_the_formula(impl: Any, panel_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(y_aware, "PANEL_ROWS", panel_rows)
    z = make_embeddings(11, 5, dtype=torch.float64).requires_grad_()
    y = torch.linspace(0, 1, 11, dtype=torch.float64)[torch.randperm(11)]
    y[3] = -1.0
    expected = dense(z, y, 0.2, 0.15)
    (gradient,) = torch.autograd.grad(expected, z)
    out = YAwareLoss(0.2, 0.15, impl=impl)(z, y)
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(torch.autograd.grad(out.loss, z)[0], gradient)
    assert out.num_anchors == 10


def test_a_narrow_kernel_is_supcon() -> None:
    z = make_embeddings(12, 5, dtype=torch.float64)
    y = torch.arange(12) % 3
    expected = SupConLoss(0.1)(z, y).loss
    torch.testing.assert_close(YAwareLoss(0.1, 0.01)(z, y).loss, expected)


def test_without_positives_the_loss_is_zero() -> None:
    z = make_embeddings(4, 3).requires_grad_()
    out = YAwareLoss()(z, torch.full((4,), -1.0))
    out.loss.backward()
    assert (out.loss, out.num_anchors, out.mean_weight) == (0, 0, 0)
    assert z.grad is not None
    assert not z.grad.any()


def test_learnable_tau_has_the_gradient_of_the_formula() -> None:
    z, y = make_embeddings(9, 4, dtype=torch.float64), torch.linspace(0, 1, 9, dtype=torch.float64)
    loss = YAwareLoss(0.3, 0.2, learnable_tau=True).double()
    loss(z, y).loss.backward()
    (log_tau,) = loss.parameters()
    step = 1e-6
    difference = dense(z, y, 0.3 + step, 0.2) - dense(z, y, 0.3 - step, 0.2)
    torch.testing.assert_close(log_tau.grad, 0.3 * difference / (2 * step))


def test_raises() -> None:
    with pytest.raises(ValueError, match="sigma must be finite and above 0, got 0"):
        YAwareLoss(sigma=0)
    with pytest.raises(ValueError, match=r"labels must be \(4,\), got \(3,\)"):
        YAwareLoss()(make_embeddings(4, 3), torch.zeros(3))


# 20260101 to 20260107 are equal in float32 but for multiples of 2
def test_differences_of_large_labels_are_exact() -> None:
    z, days = make_embeddings(7, 4, dtype=torch.float64), torch.arange(20260101, 20260108)
    expected = YAwareLoss(0.1, 1.5)(z, torch.arange(7)).loss
    for labels in (days, days.double()):
        torch.testing.assert_close(YAwareLoss(0.1, 1.5)(z.float(), labels).loss, expected.float())


def test_infinite_labels_are_unknown() -> None:
    z = make_embeddings(6, 4).requires_grad_()
    inf = float("inf")
    out = YAwareLoss()(z, torch.tensor([0.1, 0.2, inf, inf, float("nan"), -1.0]))
    out.loss.backward()
    assert out.num_anchors == 2
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_the_narrowest_kernel_has_equal_labels_for_positives() -> None:
    z, y = make_embeddings(9, 5, dtype=torch.float64), torch.arange(9) % 3
    torch.testing.assert_close(YAwareLoss(0.1, 1e-200)(z, y).loss, SupConLoss(0.1)(z, y).loss)


def test_complex_labels_are_refused() -> None:
    with pytest.raises(TypeError, match=r"labels must be real, got torch\.complex64"):
        YAwareLoss()(make_embeddings(4, 3), torch.zeros(4, dtype=torch.complex64))


def test_functional_gradient() -> None:
    z, y = make_embeddings(8, 4, dtype=torch.float64), torch.linspace(0, 1, 8)
    leaf = z.clone().requires_grad_()
    YAwareLoss(0.2, 0.3)(leaf, y).loss.backward()
    gradient = torch.func.grad(lambda x: YAwareLoss(0.2, 0.3)(x, y).loss)(z)
    torch.testing.assert_close(gradient, leaf.grad, rtol=0, atol=0)


# 13.7 sigma: the kernel is a number of float32 whose inverse is not
def test_a_kernel_that_almost_vanishes() -> None:
    z = make_embeddings(2, 3).requires_grad_()
    out = YAwareLoss(sigma=0.365)(z, torch.tensor([6.0, 1.0]))
    out.loss.backward()
    assert out.loss == 0
    assert out.num_anchors == 0
    assert z.grad is not None
    assert z.grad.abs().sum() == 0
