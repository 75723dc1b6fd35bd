"""`positive_pair_loss`: its gradient against that of the objective, and second derivatives."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast import pair_lse, positive_pair_loss
from spcl_fast.testing import (
    make_embeddings,
    make_labels,
)

IMPLS = ["reference", "chunked"]


MODES = ["hard", "linear"]


def objective(
    z: Tensor, lse: Tensor, labels: Tensor, tau: Tensor, gamma: float, mode: str, window: Any
) -> Tensor:
    """Return sum over rows of 1/|P| sum_j min_w [w l + R(w)], in closed form."""
    loss = lse[:, None] - z @ z.T / tau
    far = (labels[:, None] - labels).abs() > (window or 0)
    positive = ~far & (labels >= 0)[:, None] & (labels >= 0) & ~torch.eye(len(z), dtype=torch.bool)
    if mode == "hard":
        best = (loss - gamma).clamp_max(0)
    else:
        best = torch.where(loss <= gamma, loss - loss**2 / (2 * gamma) - gamma / 2, 0)
    rows = torch.where(positive, best, 0).sum(1) / positive.sum(1).clamp_min(1)
    return rows @ torch.linspace(1, 2, len(z), dtype=z.dtype)


@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("impl", IMPLS)
def test_gradient_is_that_of_the_objective(mode: Any, window: Any, impl: Any) -> None:
    # The envelope theorem: w is a constant for the gradient, yet min_w is what falls.
    z, labels = make_embeddings(21, 3, dtype=torch.float64), make_labels(21, 4, unknown_share=0.1)
    lse, tau = pair_lse(z, 0.3), torch.tensor(0.3, dtype=torch.float64)
    leaves = [x.clone().requires_grad_() for x in (z, lse, tau)]
    out = positive_pair_loss(
        leaves[0],
        leaves[1],
        labels,
        tau=leaves[2],
        gamma=3.1,
        mode=mode,
        window=window,
        impl=impl,
    )
    assert 0.1 < float(out.weight_sum.sum() / out.num_pos.sum()) < 0.9
    (out.loss @ torch.linspace(1, 2, 21, dtype=torch.float64)).backward()
    step = 1e-6
    for leaf in leaves:
        flat = leaf.detach().view(-1)
        for k in range(flat.numel()):
            values = []
            for sign in (1, -1):
                kept = flat[k].item()
                flat[k] = kept + sign * step
                args = [x.detach() for x in leaves]
                values.append(objective(args[0], args[1], labels, args[2], 3.1, mode, window))
                flat[k] = kept
            numeric = float(values[0] - values[1]) / (2 * step)
            assert leaf.grad is not None
            assert leaf.grad.view(-1)[k].item() == pytest.approx(numeric, rel=1e-5, abs=1e-7)


@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("impl", IMPLS)
def test_gradcheck_with_weights_of_one(window: float | None, impl: Any) -> None:
    z = make_embeddings(19, 3, dtype=torch.float64).requires_grad_()
    refs = make_embeddings(8, 3, dtype=torch.float64, seed=1).requires_grad_()
    lse = pair_lse(z, 0.3).detach().requires_grad_()
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    labels, ref_labels = make_labels(19, 4, unknown_share=0.1), make_labels(8, 4, seed=1)

    def square(z: Tensor, lse: Tensor, tau: Tensor) -> Tensor:
        return positive_pair_loss(
            z, lse, labels, tau=tau, gamma=math.inf, mode="hard", window=window, impl=impl
        ).loss

    def rectangular(z: Tensor, lse: Tensor, tau: Tensor, refs: Tensor) -> Tensor:
        return positive_pair_loss(
            z,
            lse,
            labels,
            tau=tau,
            gamma=math.inf,
            mode="hard",
            window=window,
            refs=refs,
            ref_labels=ref_labels,
            impl=impl,
        ).loss

    assert torch.autograd.gradcheck(square, (z, lse, tau))
    assert torch.autograd.gradcheck(rectangular, (z, lse, tau, refs))


def test_only_the_loss_is_differentiable_and_double_backward_raises() -> None:
    z = make_embeddings(10, 3).requires_grad_()
    lse = pair_lse(z, 0.1)
    options: dict[str, Any] = {"tau": 0.1, "gamma": 3.0, "mode": "linear"}
    out = positive_pair_loss(z, lse, make_labels(10, 2), impl="chunked", **options)
    assert out.loss.requires_grad
    assert not out.weight_sum.requires_grad
    (dz,) = torch.autograd.grad(out.loss.sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative needs"):
        dz.sum().backward()


def test_reference_can_be_differentiated_twice() -> None:
    z = make_embeddings(6, 2, dtype=torch.float64).requires_grad_()

    def loss(z: Tensor) -> Tensor:
        lse = pair_lse(z, 0.5, impl="reference")
        return positive_pair_loss(
            z,
            lse,
            make_labels(6, 2),
            tau=0.5,
            gamma=math.inf,
            mode="hard",
            impl="reference",
        ).loss

    assert torch.autograd.gradgradcheck(loss, (z,))
