"""`ContrastiveLoss` of MONAI against MONAI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from spcl_fast.compat.monai import ContrastiveLoss
from spcl_fast.testing import make_embeddings

Check = Callable[..., None]


# MONAI rounds tau to float32, so powers of 2, and overflows below 0.012; rows of another length are
# normalised; one row has loss 0.
@pytest.mark.parametrize("tau", [1 / 64, 1 / 16, 0.5, 5.0])
@pytest.mark.parametrize("norm", [0.1, 1.0, 30.0])
@pytest.mark.parametrize(("B", "D"), [(1, 3), (2, 8), (33, 16)])
def test_equals_monai(tau: float, norm: float, B: int, D: int, assert_same: Check) -> None:
    losses: Any = pytest.importorskip("monai.losses")
    views = [make_embeddings(B, D, norm=norm, seed=seed) for seed in (B, B + 1)]
    theirs = losses.ContrastiveLoss(temperature=tau)
    assert_same(ContrastiveLoss(temperature=tau), theirs, *views, scale=1 / (tau * norm))


def test_a_sharp_temperature_does_not_overflow() -> None:
    z = make_embeddings(8, 4)
    assert ContrastiveLoss(0.01)(z, z).isfinite()


@pytest.mark.usefixtures("no_host_values")
def test_nothing_waits_for_the_device(forbid_waiting: Any) -> None:
    z = make_embeddings(8, 4).requires_grad_()
    with forbid_waiting():
        ContrastiveLoss(impl="chunked")(z, z)


def test_warns_and_raises() -> None:
    with pytest.warns(UserWarning, match="batch_size"):
        ContrastiveLoss(batch_size=4)
    with pytest.raises(ValueError, match=r"input and target must be \(B, D\)"):
        ContrastiveLoss()(torch.ones(2, 3, 4), torch.ones(2, 3, 4))
    with pytest.raises(ValueError, match=r"target must be \(2, 3\) as input"):
        ContrastiveLoss()(torch.ones(2, 3), torch.ones(3, 3))
