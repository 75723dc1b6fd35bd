"""`ClipLoss` of open_clip against open_clip, with the gradient of the scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from spcl_fast.compat.open_clip import ClipLoss
from spcl_fast.testing import make_embeddings

Check = Callable[..., None]


# The scale that training is clamped to, where it starts, and a flat one; rows of any length.
@pytest.mark.parametrize("scale", [100.0, 14.3, 0.2])
@pytest.mark.parametrize("norm", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("N", "D"), [(1, 3), (2, 8), (33, 16), (70, 24)])
def test_equals_open_clip(
    scale: float, norm: float, N: int, D: int, open_clip_loss: Any, assert_same: Check
) -> None:
    features = [make_embeddings(N, D, norm=norm, seed=seed) for seed in (N, N + 1)]
    size = max(1.0, scale * norm)
    assert_same(ClipLoss(), open_clip_loss(), *features, torch.tensor(scale), scale=size)
    assert_same(ClipLoss(), open_clip_loss(), *features, torch.tensor([scale]), scale=size)


def test_bias_number_and_dict(open_clip_loss: Any, assert_same: Check) -> None:
    features = [make_embeddings(9, 4, seed=seed) for seed in (1, 2)]
    theirs = open_clip_loss()
    assert_same(ClipLoss(), theirs, *features, torch.tensor(10.0), torch.tensor(-10.0), scale=10)
    expected = theirs(*features, 10.0)
    out = ClipLoss()(*features, 10.0, output_dict=True)
    assert isinstance(out, dict)
    assert list(out) == ["contrastive_loss"]
    torch.testing.assert_close(out["contrastive_loss"], expected)


@pytest.mark.usefixtures("no_host_values")
def test_nothing_waits_for_the_device(forbid_waiting: Any) -> None:
    z = make_embeddings(8, 4).requires_grad_()
    with forbid_waiting():
        ClipLoss(impl="chunked")(z, z, torch.tensor(10.0, requires_grad=True))


def test_raises() -> None:
    with pytest.raises(ValueError, match="use_horovod must be False"):
        ClipLoss(use_horovod=True)
    with pytest.raises(ValueError, match=r"text_features must be \(2, 3\)"):
        ClipLoss()(torch.ones(2, 3), torch.ones(3, 3), 1.0)
