"""Arguments that are no tensors, as data loaders without PyTorch give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from spcl_fast import (
    InfoNCELoss,
    MemoryQueue,
    NTXentLoss,
    SelfPacedContrastiveLoss,
    SupConLoss,
    YAwareLoss,
    momentum_update,
)
from spcl_fast.compat import lightly, monai, open_clip, pytorch_metric_learning, spcl, supcontrast

Z = torch.nn.functional.normalize(torch.randn(8, 4), dim=1)
Y = np.arange(8) % 2
Y_ = torch.from_numpy(Y)
WITH_LABELS = [SupConLoss(), SelfPacedContrastiveLoss(), YAwareLoss()]


# NumPy's arrays have a shape, a dtype and, since NumPy 2, a device, which compares unequal
@pytest.mark.parametrize("loss", WITH_LABELS)
@pytest.mark.parametrize("labels", [Y, Y.tolist()])
def test_labels_are_tensors(loss: Any, labels: Any) -> None:
    with pytest.raises(TypeError, match=f"labels must be a tensor, got {type(labels).__name__}"):
        loss(Z, labels)


LABELLED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "supcontrast": ("labels", lambda y: supcontrast.SupConLoss()(Z[:, None], y)),
    "mask": ("mask", lambda y: supcontrast.SupConLoss()(Z[:, None], mask=y)),
    "spcl": ("mask", lambda y: spcl.SelfPacedSupConLoss()(Z, Z, mask=y)),
    "pml": ("labels", lambda y: pytorch_metric_learning.SupConLoss()(Z, y)),
    "pml refs": (
        "ref_labels",
        lambda y: pytorch_metric_learning.NTXentLoss()(Z, torch.arange(8), None, Z + 1, y),
    ),
    "bank": ("bank_labels", lambda y: SupConLoss()(Z, Y_, bank=Z, bank_labels=y)),
    "queue": ("labels", lambda y: MemoryQueue(9, 4).enqueue(Z, y)),
    "dict": ("labels", lambda y: MemoryQueue(9, 4, label=["a"]).enqueue(Z, {"a": y})),
}


@pytest.mark.parametrize("call", list(LABELLED))
@pytest.mark.parametrize("labels", [Y, Y.tolist()])
def test_other_labels_are_tensors(call: str, labels: Any) -> None:
    name, run = LABELLED[call]
    kind = type(labels).__name__
    with pytest.raises((TypeError, ValueError), match=f"{name} must be a tensor, got {kind}"):
        run(labels)


# A label of 2^63 or more, such as a hash of a name, would be below 0 as an int64: unknown.
def test_labels_that_int64_does_not_hold() -> None:
    labels = Y_.to(torch.uint64)
    for call in (
        lambda: SupConLoss()(Z, labels),
        lambda: SelfPacedContrastiveLoss()(Z, Y_, bank=Z, bank_labels=labels),
    ):
        with pytest.raises(TypeError, match=r"whose values int64 holds, got torch\.uint64"):
            call()
    windowed = SelfPacedContrastiveLoss(window=0.0)
    assert windowed(Z, labels).loss == windowed(Z, Y_).loss


CALLS: dict[str, Callable[[Any], Any]] = {
    "supcon": lambda z: SupConLoss()(z, torch.from_numpy(Y)),
    "y-aware": lambda z: YAwareLoss()(z, torch.from_numpy(Y)),
    "ntxent": lambda z: NTXentLoss()(z, z),
    "infonce": lambda z: InfoNCELoss()(z, z),
    "refs": lambda z: InfoNCELoss()(Z, z),
    "queue": lambda z: MemoryQueue(9, 4).enqueue(z),
    "lightly": lambda z: lightly.NTXentLoss()(z, z),
    "monai": lambda z: monai.ContrastiveLoss()(z, z),
    "open_clip": lambda z: open_clip.ClipLoss()(z, z, 10.0),
    "supcontrast": lambda z: supcontrast.SupConLoss()(z[:, None]),
    "spcl": lambda z: spcl.SelfPacedSupConLoss()(z, z),
    "pml": lambda z: pytorch_metric_learning.SupConLoss()(z, Y_),
    "bank": lambda z: SupConLoss()(Z, torch.from_numpy(Y), bank=z, bank_labels=torch.from_numpy(Y)),
}


@pytest.mark.parametrize("call", list(CALLS))
def test_rows_are_tensors(call: str) -> None:
    with pytest.raises(TypeError, match=r"must be a tensor, got ndarray"):
        CALLS[call](Z.numpy())


# What takes numbers says which one it was not given.
@pytest.mark.parametrize("bad", ["1", [1.0], True])
def test_weight_and_window_are_numbers(bad: Any) -> None:
    kind = type(bad).__name__
    with pytest.raises(TypeError, match=f"weight must be a number .* got {kind}"):
        SelfPacedContrastiveLoss()(Z, {"a": Y_}, weight={"a": bad})
    with pytest.raises(TypeError, match=f"window must be a number .* got {kind}"):
        SelfPacedContrastiveLoss(window=bad)(Z, Y_)


def test_numbers_of_queues_and_teachers() -> None:
    with pytest.raises(TypeError, match="size must be an int, got float"):
        MemoryQueue(4.0, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="label must be None or different names, got 'ab'"):
        MemoryQueue(4, 2, label="ab")
    assert len(MemoryQueue(np.int64(4), np.int32(2))) == 0  # type: ignore[arg-type]
    momentum_update(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), np.array(0.5))  # type: ignore[arg-type]
    for size in (8.0, True, np.array(8), (8.0, 4)):
        with pytest.raises(TypeError, match="memory_bank_size must be an int or a sequence"):
            lightly.NTXentLoss(memory_bank_size=size)  # type: ignore[arg-type]
