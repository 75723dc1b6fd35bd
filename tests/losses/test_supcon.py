"""`SupConLoss`: against its formula in double loops, and the digits of a large class."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from spcl_fast import SupConLoss, positive_pair_loss
from spcl_fast.testing import make_embeddings, make_labels


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_equals_a_double_loop(impl: Any) -> None:
    z, labels, tau = make_embeddings(12, 4, dtype=torch.float64), make_labels(12, 3), 0.2
    labels[4], labels[7] = -1, 17  # unknown, and alone in its class
    rows = []
    for i in range(12):
        exps = {j: math.exp(float(z[i] @ z[j]) / tau) for j in range(12) if j != i}
        positives = [j for j in exps if labels[j] == labels[i] and labels[i] >= 0]
        if positives:
            total = sum(math.log(exps[j] / sum(exps.values())) for j in positives)
            rows.append(-total / len(positives))
    out = SupConLoss(tau, impl=impl)(z, labels)
    assert out.num_anchors.item() == len(rows) == 10
    assert out.loss.item() == pytest.approx(sum(rows) / len(rows), rel=1e-12)
    assert out.objective.item() == out.loss.item()


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_gradcheck(impl: Any) -> None:
    z = make_embeddings(12, 4, dtype=torch.float64).requires_grad_()
    loss, labels = SupConLoss(0.2, impl=impl), make_labels(12, 3)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels).loss, (z,))


def test_a_large_class_keeps_its_digits() -> None:
    # 20,000 nearly equal rows of one class: a running float32 sum of them loses four digits.
    z = make_embeddings(1, 4, dtype=torch.float64) + 0.01 * make_embeddings(20_000, 4).double()
    # the positive pairs alone: lse of 20,000 rows takes seconds
    options: dict[str, Any] = {"tau": 0.07, "gamma": math.inf, "mode": "hard"}
    labels = torch.zeros(20_000, dtype=torch.int64)
    exact = positive_pair_loss(z, torch.zeros(20_000).double(), labels, **options).loss
    single = positive_pair_loss(z.float(), torch.zeros(20_000), labels, **options).loss
    assert (single.double() - exact).abs().max().item() < 1e-5


def test_raises() -> None:
    with pytest.raises(ValueError, match="tau must be finite and above 0"):
        SupConLoss(-1.0)
    with pytest.raises(TypeError, match="labels must be integer"):
        SupConLoss()(torch.ones(4, 2), torch.ones(4))
    with pytest.raises(ValueError, match=r"labels must be \(4,\)"):
        SupConLoss()(torch.ones(4, 2), torch.ones(5).long())
