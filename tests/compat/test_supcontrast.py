"""`SupConLoss` of SupContrast: against its formula, dense, view by view."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast.compat.supcontrast import SupConLoss
from spcl_fast.testing import make_embeddings

Check = Callable[..., None]


def dense(features: Tensor, positive: Tensor, tau: float, base: float, one: bool) -> Tensor:
    """Return -tau / base mean over anchors of the weighted mean of log softmax (self left out)."""
    B, V = features.shape[:2]
    rows = torch.cat([features[:, v].flatten(1) for v in range(V)])
    anchors = range(B) if one else range(B * V)
    losses = []
    for i in anchors:
        others = torch.tensor([j for j in range(B * V) if j != i])
        log_prob = torch.log_softmax(rows[others] @ rows[i] / tau, 0)
        weight = positive[i % B, others % B].to(rows)
        losses.append(-(weight * log_prob).sum() / weight.sum())
    return tau / base * torch.stack(losses).mean()


def random_features(seed: int, B: int, V: int, norm: float = 1.0) -> Tensor:
    return make_embeddings(B * V, 6, norm=norm, seed=seed).view(B, V, 6)


# One to three views; a temperature that is sharp, the usual one and one that is flat; rows of
# another length. Two classes for at least 5 rows: no row alone.
@pytest.mark.parametrize("tau", [0.01, 0.07, 5.0])
@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize(("B", "V", "norm"), [(9, 1, 1.0), (7, 2, 1.0), (5, 3, 2.5), (1, 3, 1.0)])
@pytest.mark.parametrize("by", ["labels", "mask", "weights", "images"])
def test_equals_the_formula(
    tau: float, mode: str, B: int, V: int, norm: float, by: str, assert_same: Check
) -> None:
    generator = torch.Generator().manual_seed(B)
    labels = torch.arange(B) % 2 - 1  # -1 is a class there
    arguments: dict[str, Any] = {"labels": labels}
    positive = (labels[:, None] == labels).double()
    if by == "mask":
        positive = torch.rand(B, B, generator=generator) < 0.5  # not symmetric
        positive |= (torch.arange(B)[:, None] + 1) % B == torch.arange(B)
        arguments = {"mask": positive}
    elif by == "weights":
        positive = torch.rand(B, B, generator=generator).double() + 0.1
        arguments = {"mask": positive}
    elif by == "images":
        if V == 1:
            pytest.skip("an image with one view has no positives")
        positive, arguments = torch.eye(B), {}
    loss = SupConLoss(tau, mode, 0.1)
    assert_same(
        lambda x: loss(x, **arguments),
        lambda x: dense(x, positive, tau, 0.1, mode == "one"),
        random_features(B * V, B, V, norm),
        scale=norm**2 / 0.1,
    )


# All labels of any kind that can be compared.
@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.bool])
def test_labels_of_any_dtype(dtype: torch.dtype) -> None:
    labels = torch.tensor([0, 1, 1, 0, 1])
    features = random_features(0, 5, 2)
    expected = SupConLoss()(features, labels)
    assert SupConLoss()(features, labels.to(dtype)) == expected
    assert SupConLoss()(features, labels[:, None]) == expected


def test_more_dimensions_are_features() -> None:
    features = random_features(0, 5, 2)
    assert SupConLoss()(features.view(5, 2, 3, 2)) == SupConLoss()(features)


# The row 3 is alone: one view, so without positives. By a mask too.
@pytest.mark.parametrize("by", ["labels", "mask"])
@pytest.mark.parametrize("mode", ["all", "one"])
def test_a_row_without_positives(by: str, mode: str) -> None:
    features, labels = random_features(1, 4, 1).double(), torch.tensor([5, 5, 5, 6])
    positive = labels[:, None] == labels
    arguments = {"labels": labels} if by == "labels" else {"mask": positive}
    assert dense(features, positive, 0.07, 0.07, False).isnan()
    sim = features[:, 0] @ features[:, 0].T / 0.07
    lse = sim.masked_fill(torch.eye(4, dtype=torch.bool), -math.inf).logsumexp(1)
    rows = [lse[i] - sum(sim[i, j] for j in range(3) if j != i) / 2 for i in range(3)]
    for choice, expected in {"exclude": sum(rows) / 3, "zero": sum(rows) / 4}.items():
        leaf = features.clone().requires_grad_()
        value = SupConLoss(contrast_mode=mode, without_positives=choice)(leaf, **arguments)  # type: ignore[arg-type]
        torch.testing.assert_close(value, torch.as_tensor(expected))
        value.backward()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    assert SupConLoss(contrast_mode=mode, without_positives="nan")(features, **arguments).isnan()


def test_one_row_alone_is_zero() -> None:
    leaf = torch.ones(1, 1, 3, requires_grad=True)
    for arguments in ({}, {"mask": torch.ones(1, 1)}):
        value = SupConLoss()(leaf, **arguments)
        value.backward()
        assert value.item() == 0
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("arguments", [{}, {"labels": torch.arange(4)}, {"mask": torch.eye(4)}])
@pytest.mark.usefixtures("no_host_values")
def test_nothing_waits_for_the_device(arguments: dict[str, Any], forbid_waiting: Any) -> None:
    leaf = random_features(0, 4, 2).requires_grad_()
    for mode in ("all", "one"):
        loss = SupConLoss(contrast_mode=mode, impl="chunked")
        with forbid_waiting():
            loss(leaf, **arguments)


def test_raises() -> None:
    features, labels = torch.ones(4, 2, 3), torch.zeros(4)
    with pytest.raises(ValueError, match=r"features must be \(B, V, ...\)"):
        SupConLoss()(torch.ones(4, 2))
    with pytest.raises(ValueError, match="labels and mask must not be given together"):
        SupConLoss()(features, labels, torch.eye(4))
    with pytest.raises(ValueError, match=r"labels must be \(4,\)"):
        SupConLoss()(features, torch.zeros(5))
    with pytest.raises(ValueError, match=r"mask must be \(4, 4\)"):
        SupConLoss()(features, mask=torch.eye(5))
    with pytest.raises(ValueError, match="contrast_mode must be all or one"):
        SupConLoss(contrast_mode="two")(features)
    with pytest.raises(ValueError, match="without_positives must be one of"):
        SupConLoss(without_positives="skip")  # type: ignore[arg-type]
