"""What a loss makes inside lies where its rows lie, regardless of the default device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from spcl_fast import (
    InfoNCELoss,
    MemoryQueue,
    NTXentLoss,
    SelfPacedContrastiveLoss,
    SupConLoss,
    YAwareLoss,
)
from spcl_fast.compat import lightly, monai, open_clip, pytorch_metric_learning, spcl, supcontrast
from spcl_fast.testing import make_embeddings

Z, BANK = make_embeddings(8, 4), make_embeddings(5, 4)
Y, BANK_Y = torch.arange(8) % 2, torch.arange(5) % 2
LOSSES: dict[str, Callable[[torch.Tensor, Any], torch.Tensor]] = {
    "supcon": lambda z, impl: SupConLoss(impl=impl)(z, Y).loss,
    "linear": lambda z, impl: SelfPacedContrastiveLoss(impl=impl)(z, Y, gamma=3.0).loss,
    "hard": lambda z, impl: SelfPacedContrastiveLoss(mode="hard", impl=impl)(z, Y, gamma=3.0).loss,
    "window": lambda z, impl: SelfPacedContrastiveLoss(window=0.5, impl=impl)(z, Y, gamma=3.0).loss,
    "bank": lambda z, impl: SupConLoss(impl=impl)(z, Y, bank=BANK, bank_labels=BANK_Y).loss,
    "ntxent": lambda z, impl: NTXentLoss(impl=impl)(z[:4], z[4:]).loss,
    "infonce": lambda z, impl: InfoNCELoss(impl=impl)(z[:4], z[4:]).loss,
    "y-aware": lambda z, impl: YAwareLoss(impl=impl)(z, Y).loss,
    "compat.supcontrast": lambda z, impl: supcontrast.SupConLoss(impl=impl)(z[:, None], Y),
    "compat.spcl": lambda z, impl: spcl.SelfPacedSupConLoss(impl=impl)(z[:4], z[4:], target=Y[:4]),
    "compat.spcl, images": lambda z, impl: spcl.SelfPacedSupConLoss(impl=impl)(z[:4], z[4:]),
    "compat.pml": lambda z, impl: pytorch_metric_learning.SupConLoss(impl=impl)(z, Y),
    "compat.lightly": lambda z, impl: lightly.NTXentLoss(impl=impl)(z[:4], z[4:]),
    "compat.monai": lambda z, impl: monai.ContrastiveLoss(impl=impl)(z[:4], z[4:]),
    "compat.open_clip": lambda z, impl: open_clip.ClipLoss(impl=impl)(z[:4], z[4:], 10.0),
}


# a tensor on "meta" has no values: what it is mixed with fails or is memory that nobody wrote
@pytest.mark.parametrize("impl", ["reference", "chunked", "auto"])
@pytest.mark.parametrize("name", list(LOSSES))
def test_default_device_changes_nothing(name: str, impl: str) -> None:
    def run() -> tuple[torch.Tensor, torch.Tensor | None]:
        z = Z.clone().requires_grad_()
        loss = LOSSES[name](z, impl)
        loss.backward()
        return loss.detach(), z.grad

    expected = run()
    with torch.device("meta"):
        actual = run()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_a_queue_keeps_its_position() -> None:
    queue, other = MemoryQueue(5, 4), MemoryQueue(5, 4)
    with torch.device("meta"):
        queue.enqueue(BANK[:3], BANK_Y[:3])
        other.load_state_dict(queue.state_dict())
    assert len(other) == 3
    assert torch.equal(other.rows, BANK[:3])


@pytest.mark.filterwarnings("ignore:memory_bank_size=6 leaves the features")
def test_a_bank_whose_features_are_those_of_the_first_batch() -> None:
    loss = lightly.NTXentLoss(memory_bank_size=6)
    with torch.device("meta"):
        assert loss(Z[:4], Z[4:]).isfinite()
    assert loss.memory_bank.bank.shape == (6, 4)
