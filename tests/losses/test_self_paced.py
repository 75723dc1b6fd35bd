"""`SelfPacedContrastiveLoss`: by hand, against the authors' formula, and as a training signal."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast import SelfPacedContrastiveLoss, SupConLoss
from spcl_fast.pacing import relative_gamma
from spcl_fast.testing import make_embeddings, make_labels

IMPLS: list[Any] = ["reference", "chunked"]
MODES: list[Any] = ["hard", "linear"]


@pytest.mark.parametrize("impl", IMPLS)
def test_by_hand(impl: Any) -> None:
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    labels = torch.tensor([0, 0, 0, -1])
    # tau = 1: sims are 1 (equal rows) or 0, so every lse is log(e + 2);
    # l = lse - 1 for the pairs 02 and 20, lse for 01, 10, 12, 21
    lse = math.log(math.e + 2)
    near, far = lse - 1, lse
    out = SelfPacedContrastiveLoss(1.0, "hard", impl=impl)(z, labels, 1.0)
    assert out.lse.tolist() == pytest.approx([lse] * 4)
    assert out.loss.item() == pytest.approx(2 * (near / 2) / 3)
    assert out.mean_weight.item() == pytest.approx(2 / 6)
    assert out.num_anchors.item() == 3
    assert out.objective.item() == pytest.approx(2 * ((near - 1.0) / 2) / 3)
    assert out.terms == {}
    gamma = 2.0
    near_weight, far_weight = 1 - near / gamma, 1 - far / gamma
    out = SelfPacedContrastiveLoss(1.0, "linear", impl=impl)(z, labels, gamma)
    loss = (2 * near_weight * near + 4 * far_weight * far) / 6
    pace = gamma * (2 * (near_weight**2 / 2 - near_weight) + 4 * (far_weight**2 / 2 - far_weight))
    assert out.loss.item() == pytest.approx(loss)
    assert out.objective.item() == pytest.approx(loss + pace / 6)
    assert out.mean_weight.item() == pytest.approx((2 * near_weight + 4 * far_weight) / 6)
    # |sum z|^2 = 8, sum |z|^2 = 4
    assert out.collapse.item() == pytest.approx((8 - 4) / (3 * 4))


def authors_loss(
    z: Tensor, target: Tensor, gamma: float, mode: str, correct_grad: bool
) -> tuple[Tensor, Tensor]:
    """Return loss and mean weight as the authors' class forms them, tau = 0.07."""
    logits = z @ z.T / 0.07
    logits = logits - logits.max().detach()
    others = 1 - torch.eye(len(z), dtype=z.dtype)
    positive = (target[:, None] == target).to(z.dtype) * others
    log_prob = logits - torch.log((logits.exp() * others).sum(1, keepdim=True) + 1e-16)
    pair_loss = -log_prob.detach()
    if mode == "hard":
        weight = (pair_loss <= gamma).to(z.dtype)
    else:
        weight = torch.max(1 - 1 / gamma * pair_loss, torch.zeros_like(pair_loss))
    loss = -((log_prob * weight * positive).sum(1) / positive.sum(1)).mean()
    ratio = (weight * positive).sum() / positive.sum()
    if correct_grad and ratio > 0:
        loss = loss / ratio
    return loss, ratio


# 6 switches off a part of the pairs, 1e6 none, 0.01 all of them.
@pytest.mark.parametrize("gamma", [0.01, 6.0, 1e6])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("correct_grad", [False, True])
@pytest.mark.parametrize("impl", IMPLS)
def test_parity_with_the_authors(gamma: float, mode: Any, correct_grad: bool, impl: Any) -> None:
    labels = make_labels(30, 5).repeat(2)  # two views: no row without positives
    z = make_embeddings(60, 16, dtype=torch.float64)
    theirs, ours = z.clone().requires_grad_(), z.clone().requires_grad_()
    expected, ratio = authors_loss(theirs, labels, gamma, mode, correct_grad)
    expected.backward()
    loss = SelfPacedContrastiveLoss(0.07, mode, correct_grad=correct_grad, impl=impl)
    out = loss(ours, labels, gamma)
    out.loss.backward()
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(out.mean_weight, ratio)
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert (0 < ratio < 1) == (gamma == 6.0 or (gamma == 1e6 and mode == "linear"))


@pytest.mark.parametrize("impl", IMPLS)
def test_a_dict_of_labels_is_a_weighted_sum(impl: Any) -> None:
    z = make_embeddings(40, 6, dtype=torch.float64)
    labels = {
        "position": torch.rand(40),
        "patient": make_labels(40, 4, unknown_share=0.3),
        "phase": make_labels(40, 2, seed=1),
    }
    gamma = {"position": 5.0, "patient": 3.0, "phase": math.inf}
    weight = {"position": 1.0, "patient": 0.1, "phase": 0.25}
    loss = SelfPacedContrastiveLoss(0.1, window={"position": 0.1}, impl=impl)
    joint = z.clone().requires_grad_()
    out = loss(joint, labels, gamma, weight)
    out.loss.backward()
    assert list(out.terms) == ["position", "patient", "phase"]
    apart = z.clone().requires_grad_()
    total = objective = torch.zeros((), dtype=torch.float64)
    for name, label in labels.items():
        window = 0.1 if name == "position" else None
        single = SelfPacedContrastiveLoss(0.1, window=window, impl=impl)(apart, label, gamma[name])
        total = total + weight[name] * single.loss
        objective = objective + weight[name] * single.objective
        term = out.terms[name]
        torch.testing.assert_close(term.loss, single.loss)
        torch.testing.assert_close(term.objective, single.objective)
        torch.testing.assert_close(term.mean_weight, single.mean_weight)
        assert torch.equal(term.num_anchors, single.num_anchors)
    total.backward()
    torch.testing.assert_close(out.loss, total)
    torch.testing.assert_close(out.objective, objective)
    torch.testing.assert_close(joint.grad, apart.grad)


def test_counts_over_all_labels() -> None:
    labels = {"a": torch.tensor([0, 0, -1, -1, 1]), "b": torch.tensor([-1, 3, 3, -1, 4])}
    out = SelfPacedContrastiveLoss()(make_embeddings(5, 3), labels)
    assert out.num_anchors.item() == 3
    assert [term.num_anchors.item() for term in out.terms.values()] == [2, 2]
    assert out.mean_weight.item() == 1.0


@pytest.mark.parametrize("mode", MODES)
def test_gamma_of_infinity_is_supcon(mode: Any) -> None:
    z, labels = make_embeddings(40, 6, dtype=torch.float64), make_labels(40, 4)
    plain = SupConLoss(0.1)(z, labels)
    for gamma in (math.inf, torch.tensor(math.inf)):
        out = SelfPacedContrastiveLoss(0.1, mode)(z, labels, gamma)
        torch.testing.assert_close(out.loss, plain.loss)
        torch.testing.assert_close(out.objective, out.loss)
        assert out.mean_weight.item() == 1.0


def test_a_tensor_gamma_gives_the_objective_of_a_number() -> None:
    z, labels = make_embeddings(40, 6, dtype=torch.float64), make_labels(40, 4)
    for mode in MODES:
        loss = SelfPacedContrastiveLoss(0.1, mode)
        number, tensor = loss(z, labels, 5.0), loss(z, labels, torch.tensor(5.0))
        assert number.objective < number.loss
        torch.testing.assert_close(tensor.objective, number.objective)


def test_a_collapsed_embedding() -> None:
    z, labels = make_embeddings(1, 6).expand(50, 6), make_labels(50, 4)
    loss = SelfPacedContrastiveLoss()
    out = loss(z, labels)
    assert out.collapse.item() == pytest.approx(1.0)
    assert out.loss.item() == pytest.approx(math.log(49), rel=1e-5)
    assert loss(z, labels, relative_gamma(0.99, 50)).mean_weight.item() == 0
    assert loss(z, labels, relative_gamma(2.0, 50)).mean_weight.item() == pytest.approx(0.5, 1e-4)
    spread = torch.cat([torch.eye(6), -torch.eye(6)])
    assert loss(spread, make_labels(12, 2)).collapse.item() == pytest.approx(-1 / 11)


# No row; one; two strangers; nobody known: a loss of 0 with a gradient of 0, never NaN.
@pytest.mark.parametrize(
    "labels", [[], [0], [0, 1], [-1, -1, -1]], ids=["none", "one", "strangers", "unknown"]
)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("gamma", [2.0, math.inf])
def test_without_positives(labels: list[int], impl: Any, gamma: float) -> None:
    z = make_embeddings(len(labels), 3).requires_grad_()
    loss = SelfPacedContrastiveLoss(correct_grad=True, impl=impl)
    out = loss(z, torch.tensor(labels, dtype=torch.int64), gamma)
    out.loss.backward()
    for value in (out.loss, out.objective, out.mean_weight, out.num_anchors):
        assert value.item() == 0
    assert math.isfinite(out.collapse.item())
    assert z.grad is not None
    assert z.grad.abs().sum().item() == 0


def test_learnable_tau() -> None:
    z, labels = make_embeddings(30, 4, dtype=torch.float64), make_labels(30, 3)
    loss = SelfPacedContrastiveLoss(0.2, learnable_tau=True).double()
    loss(z, labels, 4.0).loss.backward()
    (log_tau,) = loss.parameters()
    assert log_tau.exp().item() == pytest.approx(0.2)
    step = 1e-6
    at = [SelfPacedContrastiveLoss(0.2 * math.exp(d))(z, labels, 4.0) for d in (step, -step)]
    # the weights move with tau too: the objective has the gradient that the loss reports
    numeric = (at[0].objective - at[1].objective).item() / (2 * step)
    assert log_tau.grad is not None
    assert log_tau.grad.item() == pytest.approx(numeric, rel=1e-5)


# Half precision as it comes out of a projector, with and without autocast around the call.
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype: torch.dtype) -> None:
    z, labels = make_embeddings(40, 16, dtype=dtype), make_labels(40, 4)
    loss = SelfPacedContrastiveLoss()
    exact = loss(z.double(), labels, 4.0).loss
    leaf = z.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = loss(leaf, labels, 4.0)
        out.loss.backward()
    assert out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(exact.item(), rel=1e-5)
    assert leaf.grad is not None
    assert leaf.grad.dtype == dtype


def test_twenty_steps_sort_the_rows_by_class() -> None:
    torch.manual_seed(0)
    labels = make_labels(64, 4)
    features = torch.nn.functional.one_hot(labels, 4) + torch.randn(64, 4)
    projector = torch.nn.Linear(4, 8)
    optimizer = torch.optim.SGD(projector.parameters(), lr=0.5)
    loss = SelfPacedContrastiveLoss(0.2)
    values = []
    for _ in range(20):
        z = torch.nn.functional.normalize(projector(features), dim=1)
        out = loss(z, labels, relative_gamma(2.0, 64))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        values.append(out.objective.item())
    assert values[-1] < values[0] - 0.1
    assert sum(after > before for before, after in pairwise(values)) <= 3


def bad_calls() -> list[tuple[str, dict[str, Any]]]:
    labels = {"a": torch.zeros(4, dtype=torch.int64), "b": torch.ones(4, dtype=torch.int64)}
    named: dict[str, Any] = {"labels": labels}
    return [
        (r"gamma must name .* missing \['b'\], extra \['c'\]", named | {"gamma": {"a": 1, "c": 2}}),
        (r"weight must name .* missing \['a'\], extra \[\]", named | {"weight": {"b": 1.0}}),
        ("gamma must be a single value", {"gamma": {"a": 1.0}}),
        ("weight must be a single value", {"weight": {"a": 1.0}}),
        ("labels must name at least one", {"labels": {}}),
        ("gamma must be above 0", {"gamma": -1.0}),
    ]


@pytest.mark.parametrize(("message", "change"), bad_calls())
def test_forward_raises(message: str, change: dict[str, Any]) -> None:
    good: dict[str, Any] = {"z": torch.ones(4, 2), "labels": torch.zeros(4, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        SelfPacedContrastiveLoss()(**good | change)


def test_construction_raises() -> None:
    with pytest.raises(ValueError, match="tau must be finite and above 0"):
        SelfPacedContrastiveLoss(0.0)
    with pytest.raises(ValueError, match="mode must be one of"):
        SelfPacedContrastiveLoss(mode="soft")  # type: ignore[arg-type]
    z, labels = torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="window must name the labels"):
        SelfPacedContrastiveLoss(window={"c": 0.1})(z, {"a": labels})
    with pytest.raises(ValueError, match="window must be a single value"):
        SelfPacedContrastiveLoss(window={"c": 0.1})(z, labels)
