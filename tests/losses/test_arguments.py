"""Arguments that are no tensors, as data loaders without PyTorch give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from spcl_fast import InfoNCELoss, NTXentLoss, SelfPacedContrastiveLoss, SupConLoss, YAwareLoss

Z = torch.nn.functional.normalize(torch.randn(8, 4), dim=1)
Y = np.arange(8) % 2
WITH_LABELS = [SupConLoss(), SelfPacedContrastiveLoss(), YAwareLoss()]


# NumPy's arrays have a shape, a dtype and, since NumPy 2, a device, which compares unequal
@pytest.mark.parametrize("loss", WITH_LABELS)
@pytest.mark.parametrize("labels", [Y, Y.tolist()])
def test_labels_are_tensors(loss: Any, labels: Any) -> None:
    with pytest.raises(TypeError, match=f"labels must be a tensor, got {type(labels).__name__}"):
        loss(Z, labels)


CALLS: dict[str, Callable[[Any], Any]] = {
    "supcon": lambda z: SupConLoss()(z, torch.from_numpy(Y)),
    "y-aware": lambda z: YAwareLoss()(z, torch.from_numpy(Y)),
    "ntxent": lambda z: NTXentLoss()(z, z),
    "infonce": lambda z: InfoNCELoss()(z, z),
    "bank": lambda z: SupConLoss()(Z, torch.from_numpy(Y), bank=z, bank_labels=torch.from_numpy(Y)),
}


@pytest.mark.parametrize("call", list(CALLS))
def test_rows_are_tensors(call: str) -> None:
    with pytest.raises(TypeError, match=r"must be a tensor, got ndarray"):
        CALLS[call](Z.numpy())
