"""Wrong arguments: each is named in one sentence, with what it must be and what it was."""

from __future__ import annotations

import math
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
    native,
)
from spcl_fast.compat import lightly, monai, open_clip, pytorch_metric_learning, spcl, supcontrast
from spcl_fast.ops import Label, contrastive_terms, infonce_terms
from spcl_fast.pacing import RelativePace, quantile_gamma

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


def gamma_of(z: Any, lse: Any, **options: Any) -> Any:
    return quantile_gamma(z, lse, Y_, **{"tau": 1.0, "share": 0.5} | options)


ANY: Any = "any"
ONE: Any = 1
LSE = Z[:, 0]
PAIRS = torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([0]), torch.tensor([5, 7])
# Errors name an argument of the function that was called.
NAMED: dict[str, Callable[[], Any]] = {
    "view1 must be floating point": lambda: NTXentLoss()(Y_[:, None], Y_[:, None]),
    "refs must have the dtype of anchors": lambda: InfoNCELoss()(Z, Z.double()),
    r"refs must be \(M, 4\) as anchors": lambda: InfoNCELoss()(Z, Z[:, :3]),
    "pace must be a Pace": lambda: SelfPacedContrastiveLoss(pace=ANY),
    "group must be a process group or None, got str": lambda: SupConLoss(group=ANY)(Z, Y_),
    "tau must be a number, got a tensor": lambda: SupConLoss(torch.ones(2)),  # type: ignore[arg-type]
    "steps must be a number": lambda: RelativePace(ANY),
    "start must be a number": lambda: RelativePace(10, start=ANY),
    "num_rows must be None or at least 1, got -8": lambda: RelativePace(10, num_rows=-8),
    "bins must be an int, got float": lambda: gamma_of(Z, LSE, bins=2.5),
    "lse must be a tensor, got NoneType": lambda: gamma_of(Z, None),
    r"lse must be float32 or float64 \(8,\)": lambda: gamma_of(Z, LSE[:3]),
    "z must be a tensor, got list": lambda: gamma_of(Z.tolist(), LSE),
    "window must be a number": lambda: gamma_of(Z, LSE, window="1"),
    "refs must have 8 rows as anchors, being symmetric, got 16": lambda: infonce_terms(
        Z, torch.cat([Z, Z]), 0.1, symmetric=True
    ),
    "factors must have one value a label, 2, got 1": lambda: contrastive_terms(
        Z, 0.1, [Label(Y_), Label(Y_)], [1.0], mode="hard"
    ),
    "group must be a process group or None, got int": lambda: NTXentLoss(group=ONE)(Z, Z),
    "mib must be an int, got float": lambda: native.set_tile_cache_mib(math.nan),  # type: ignore[arg-type]
    "dim must be an int, got bool": lambda: MemoryQueue(4, True),
    "label_dtype must be a torch.dtype": lambda: MemoryQueue(4, 2, label_dtype=ANY),
    "temperature must be finite": lambda: supcontrast.SupConLoss(-1),
    "base_temperature must be finite": lambda: supcontrast.SupConLoss(base_temperature=0),
    "temperature must be finite and above 0, got -1": lambda: monai.ContrastiveLoss(-1),
    "temperature must be finite and above 0, got -2": lambda: spcl.SelfPacedSupConLoss(-2),
    "temperature must be finite and above 0, got -3": lambda: pytorch_metric_learning.NTXentLoss(
        -3
    ),
    "temperature must be a number": lambda: lightly.NTXentLoss(ANY),
    "logit_scale must be finite": lambda: open_clip.ClipLoss()(Z, Z, 0),
    "logit_scale must be a number or": lambda: open_clip.ClipLoss()(Z, Z, torch.ones(2)),
    "text_features must have the dtype": lambda: open_clip.ClipLoss()(Z, Z.double(), 10.0),
    "image_features must be floating": lambda: open_clip.ClipLoss()(Y_[:, None], Y_[:, None], 1.0),
    "out0 must be floating point": lambda: lightly.NTXentLoss()(Y_[:, None], Y_[:, None]),
    "input must be floating point": lambda: monai.ContrastiveLoss()(Y_[:, None], Y_[:, None]),
    r"embeddings must be \(rows, feat": lambda: pytorch_metric_learning.SupConLoss()(LSE, Y_),
    "proj_feat2 must be floating": lambda: spcl.SelfPacedSupConLoss()(Z, Y_[:, None].expand(8, 4)),
    r"target must be \(8,\), got \(7,\)": lambda: spcl.SelfPacedSupConLoss()(Z, Z, Y_[1:]),
    r"as many anchors as others, got \(1,\) and": lambda: pytorch_metric_learning.SupConLoss()(
        Z, indices_tuple=PAIRS
    ),
    "indices_tuple must hold integer tensors": lambda: pytorch_metric_learning.NTXentLoss()(
        Z, indices_tuple=(LSE,) * 3
    ),
}


@pytest.mark.parametrize("message", list(NAMED))
def test_errors_name_the_argument(message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        NAMED[message]()


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
