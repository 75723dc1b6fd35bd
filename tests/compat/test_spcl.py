"""`SelfPacedSupConLoss` of the authors: against its formula, dense."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast.compat.spcl import SelfPacedSupConLoss
from spcl_fast.testing import make_embeddings, make_labels

Check = Callable[..., None]


def dense(
    z: Tensor, positive: Tensor, tau: float, gamma: float, hard: bool, correct: bool
) -> tuple[Tensor, Tensor]:
    """Return the loss and the weights, 1 at what is no positive pair."""
    N = len(z)
    others = ~torch.eye(N, dtype=torch.bool)
    pair_loss = -torch.log_softmax((z @ z.T / tau).masked_fill(~others, -1e30), 1)
    positive = positive.repeat(2, 2) & others
    weight = pair_loss.detach()
    weight = (weight <= gamma).to(z) if hard else (1 - weight / gamma).clamp(min=0)
    weight = torch.where(positive, weight, 1)
    rows = [(weight[i] * pair_loss[i])[positive[i]].mean() for i in range(N)]
    mean_weight = weight[positive].mean()
    scale = mean_weight if correct and mean_weight > 0 else 1
    return torch.stack(rows).mean() / scale, weight


# 0.01 switches all pairs off, 4 some, 1e6 none in the hard mode.
@pytest.mark.parametrize("gamma", [0.01, 4.0, 1e6])
@pytest.mark.parametrize("update", ["hard", "soft"])
@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("tau", [0.07, 5.0])
@pytest.mark.parametrize("by", ["target", "list", "mask", "images"])
def test_equals_the_formula(
    gamma: float, update: str, correct: bool, tau: float, by: str, assert_same: Check
) -> None:
    B = 12
    labels = make_labels(B, 3) - 1
    positive = labels[:, None] == labels
    arguments: dict[str, Any] = {"target": labels}
    if by == "list":
        arguments = {"target": labels.tolist()}
    elif by == "mask":
        generator = torch.Generator().manual_seed(0)
        positive = torch.rand(B, B, generator=generator) < 0.4  # not symmetric
        positive |= torch.arange(B)[:, None] == torch.arange(B)
        arguments = {"mask": positive.long(), "target": labels}
    elif by == "images":
        positive, arguments = torch.eye(B, dtype=torch.bool), {}
    loss = SelfPacedSupConLoss(tau, update, correct)
    loss.set_gamma(gamma)
    assert loss.age_param == gamma
    views = [make_embeddings(B, 16, seed=seed) for seed in (1, 2)]

    def expected(a: Tensor, b: Tensor) -> Tensor:
        return dense(torch.cat([a, b]), positive, tau, gamma, update == "hard", correct)[0]

    assert_same(lambda a, b: loss(a, b, **arguments), expected, *views, scale=1 / tau)
    z = torch.cat(views)
    _, weight = dense(z, positive, tau, gamma, update == "hard", correct)
    both = positive.repeat(2, 2).fill_diagonal_(False)
    loss(*views, **arguments)
    torch.testing.assert_close(loss.sp_mask, weight, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss.pos_mask, both.float())
    torch.testing.assert_close(loss.neg_mask, (~both).float().fill_diagonal_(0))
    torch.testing.assert_close(loss.sim_exp, loss.sim_logits.exp())
    assert loss.sim_logits.max() == 0
    assert isinstance(loss.downgrade_ratio, float)
    assert loss.downgrade_ratio == pytest.approx(weight[both].mean().item(), abs=1e-5)


@pytest.mark.parametrize("rows", [5, 100])
def test_panels_of_a_mask(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from spcl_fast.compat import _panels

    views = [make_embeddings(20, 8, seed=seed).double() for seed in (1, 2)]
    labels = make_labels(20, 4)
    mask = labels[:, None] == labels
    monkeypatch.setattr(_panels, "PANEL_ELEMENTS", 40 * rows)
    results = []
    for arguments in ({"target": labels}, {"mask": mask}):
        loss = SelfPacedSupConLoss(weight_update="soft")
        loss.set_gamma(5.0)
        leaves = [x.clone().requires_grad_() for x in views]
        value = loss(*leaves, **arguments)
        results.append((value, *torch.autograd.grad(value, leaves)))
    torch.testing.assert_close(results[0], results[1])


# A tensor mask of rows without positives: excluded, where theirs is NaN.
def test_a_row_without_positives() -> None:
    views = [make_embeddings(3, 8, seed=seed) for seed in (1, 2)]
    mask = torch.eye(3)
    mask[1, 1] = 0
    loss = SelfPacedSupConLoss()
    assert loss(*views, mask=mask).isfinite()
    assert loss.pos_mask[1].sum() == 0


@pytest.mark.usefixtures("no_host_values")
def test_nothing_waits_for_the_device(forbid_waiting: Any) -> None:
    views = [make_embeddings(8, 4, seed=seed).requires_grad_() for seed in (1, 2)]
    for arguments in ({}, {"target": torch.arange(8) % 3}, {"mask": torch.eye(8)}):
        loss = SelfPacedSupConLoss(weight_update="soft", correct_grad=True, impl="chunked")
        with forbid_waiting():
            loss(*views, **arguments)


def test_repr_and_raises() -> None:
    loss = SelfPacedSupConLoss(some_option=3)
    assert "gamma: 1000000.0" in repr(loss)
    with pytest.raises(RuntimeError, match="must have been called"):
        _ = loss.sp_mask
    with pytest.raises(ValueError, match=r"proj_feat2 must be \(2, 3\)"):
        loss(torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"mask must be \(2, 2\)"):
        loss(torch.ones(2, 3), torch.ones(2, 3), mask=torch.eye(3))
