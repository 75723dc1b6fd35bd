"""`InfoNCELoss`: cross-entropies over the rows and the columns of the similarity matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from spcl_fast import InfoNCELoss
from spcl_fast.testing import make_embeddings


# A queue beyond the anchors leaves one direction; as many references as anchors allow both.
@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize(("num_refs", "symmetric"), [(30, True), (30, False), (75, True)])
@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_equals_cross_entropy(num_refs: int, symmetric: bool, impl: Any) -> None:
    anchors = make_embeddings(30, 6, dtype=torch.float64).requires_grad_()
    refs = make_embeddings(num_refs, 6, dtype=torch.float64, seed=1).requires_grad_()
    loss = InfoNCELoss(0.2, symmetric, learnable_tau=True, impl=impl).double()
    (log_tau,) = loss.parameters()
    logits = anchors @ refs.T / log_tau.exp()
    expected = cross_entropy(logits, torch.arange(30))
    if symmetric and num_refs == 30:
        expected = (expected + cross_entropy(logits.T, torch.arange(30))) / 2
    inputs = [anchors, refs, log_tau]
    gradients = torch.autograd.grad(expected, inputs)
    out = loss(anchors, refs)
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(torch.autograd.grad(out.loss, inputs), gradients)
    torch.testing.assert_close(out.lse, logits.logsumexp(1).detach())
    assert out.num_anchors.item() == 30
    assert out.mean_weight.item() == 1.0


def test_no_anchors() -> None:
    out = InfoNCELoss()(torch.ones(0, 3), torch.ones(5, 3))
    assert out.loss.item() == 0
    assert out.num_anchors.item() == 0


def test_raises() -> None:
    with pytest.raises(ValueError, match="tau must be finite and above 0"):
        InfoNCELoss(0.0)
    with pytest.raises(ValueError, match="refs must have at least as many rows"):
        InfoNCELoss()(torch.ones(4, 2), torch.ones(3, 2))
    with pytest.raises(TypeError, match="refs must have the dtype"):
        InfoNCELoss()(torch.ones(4, 2), torch.ones(4, 2).double())
    with pytest.raises(ValueError, match=r"refs must be \(M, 2\)"):
        InfoNCELoss()(torch.ones(4, 2), torch.ones(4, 3))
