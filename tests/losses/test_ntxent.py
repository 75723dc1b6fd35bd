"""`NTXentLoss`: a cross-entropy over the other rows, and SupCon with images for labels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from spcl_fast import NTXentLoss, SupConLoss
from spcl_fast.testing import make_embeddings


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_equals_cross_entropy_and_supcon(impl: Any) -> None:
    view1 = make_embeddings(20, 6, dtype=torch.float64).requires_grad_()
    view2 = make_embeddings(20, 6, dtype=torch.float64, seed=1).requires_grad_()
    z = torch.cat([view1, view2])
    logits = (z @ z.T / 0.3).masked_fill(torch.eye(40, dtype=torch.bool), -math.inf)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(40).roll(20))
    gradients = torch.autograd.grad(expected, [view1, view2])
    out = NTXentLoss(0.3, impl=impl)(view1, view2)
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(torch.autograd.grad(out.loss, [view1, view2]), gradients)
    supcon = SupConLoss(0.3, impl=impl)(z, torch.arange(20).repeat(2))
    torch.testing.assert_close(out.loss, supcon.loss)
    assert out.num_anchors.item() == 40
    assert out.lse.shape == (40,)


def test_learnable_tau_has_a_gradient() -> None:
    loss = NTXentLoss(0.3, learnable_tau=True)
    loss(make_embeddings(8, 4), make_embeddings(8, 4, seed=1)).loss.backward()
    (log_tau,) = loss.parameters()
    assert log_tau.grad is not None
    assert log_tau.grad.item() != 0


def test_raises() -> None:
    with pytest.raises(ValueError, match="tau must be finite and above 0"):
        NTXentLoss(math.inf)
    for view2 in (torch.ones(3, 2), torch.ones(4, 2).double(), torch.ones(4, 2, device="meta")):
        with pytest.raises(ValueError, match="view2 must be of the shape, dtype and device"):
            NTXentLoss()(torch.ones(4, 2), view2)
    with pytest.raises(TypeError, match="view1 must be floating"):
        NTXentLoss()(torch.ones(4, 2).long(), torch.ones(4, 2).long())
