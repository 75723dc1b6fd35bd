"""On an accelerator nothing may come back to the host: the losses run without reading a value.

The path of an accelerator runs here on CPU tensors, with every operator that would wait forbidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast import InfoNCELoss, NTXentLoss, SelfPacedContrastiveLoss, SupConLoss, pair_lse
from spcl_fast.pacing import quantile_gamma
from spcl_fast.testing import make_embeddings, make_labels


def self_paced(z: Tensor) -> Tensor:
    labels = {"position": make_labels(67, 5, unknown_share=0.1), "time": torch.rand(67)}
    lse = pair_lse(z.detach(), 0.07)
    gamma = quantile_gamma(z.detach(), lse, labels["position"], tau=0.07, share=0.5)
    loss = SelfPacedContrastiveLoss(
        correct_grad=True, window={"time": 0.1}, learnable_tau=True, impl="chunked"
    )
    out: Tensor = loss(z, labels, {"position": gamma, "time": 5.0}).loss
    return out


def hard(z: Tensor) -> Tensor:
    loss = SelfPacedContrastiveLoss(mode="hard", impl="chunked")
    out: Tensor = loss(z, make_labels(67, 5), torch.tensor(4.0)).loss
    return out


def supcon(z: Tensor) -> Tensor:
    out: Tensor = SupConLoss(impl="chunked")(z, make_labels(67, 5, unknown_share=0.1)).loss
    return out


def views(z: Tensor) -> Tensor:
    out: Tensor = NTXentLoss(impl="chunked")(z[:30], z[30:60]).loss
    return out


def towers(z: Tensor) -> Tensor:
    out: Tensor = InfoNCELoss(impl="chunked")(z[:30], z[30:60]).loss
    return out


@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("function", [self_paced, hard, supcon, views, towers])
def test_accelerator_path(
    function: Callable[[Tensor], Tensor],
    request: pytest.FixtureRequest,
    forbid_waiting: Callable[[], AbstractContextManager[Any]],
) -> None:
    results = []
    for is_accelerator in (False, True):
        torch.manual_seed(0)
        z = make_embeddings(67, 8, dtype=torch.float64).requires_grad_()
        if is_accelerator:
            request.getfixturevalue("no_host_values")
            with forbid_waiting():
                loss = function(z)
                loss.backward()
        else:
            loss = function(z)
            loss.backward()
        results.append((loss.detach(), z.grad))
    assert math.isfinite(results[0][0].item())
    torch.testing.assert_close(results[1], results[0])


def test_the_guard_catches_a_wait(
    forbid_waiting: Callable[[], AbstractContextManager[Any]],
) -> None:
    x = torch.arange(3.0)
    for wait in (lambda: x.sum().item(), lambda: x[x > 1], lambda: bool(x.any()), x.unique):
        with forbid_waiting(), pytest.raises(AssertionError, match="wait"):
            wait()
