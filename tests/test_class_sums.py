"""Sums over classes against the reference with gamma = inf, as the host and as a GPU takes them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast import class_sums, reference
from spcl_fast.class_sums import Classes, class_sum_gradients, class_sum_loss
from spcl_fast.operands import Label, Pairs
from spcl_fast.testing import assert_within_budget, make_embeddings, make_labels

TAU = 0.07
Results = dict[str, Tensor]


@pytest.fixture(params=["host", "device"], autouse=True)
def _where_the_labels_are(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the number of classes, or take its upper bound, as where the host cannot read it."""
    monkeypatch.setattr(class_sums, "is_host", lambda _device: request.param == "host")


def by_reference(z: Tensor, refs: Tensor | None, lse: Tensor, labels: Any) -> Results:
    leaves = {"dz": z} if refs is None else {"dz": z, "drefs": refs}
    leaves = {name: x.clone().requires_grad_() for name, x in leaves.items()}
    pairs = Pairs(leaves["dz"], leaves.get("drefs"), TAU)
    label = Label(labels[0], ref_values=labels[1])
    lse = lse.to(torch.promote_types(z.dtype, torch.float32))
    out = reference.positive_pair_loss(pairs, lse, label, "linear")
    grads = torch.autograd.grad(out.loss.sum(), list(leaves.values()))
    values = {**out._asdict(), "loss": out.loss.detach()}
    return values | dict(zip(leaves, grads, strict=True))


def by_class_sums(z: Tensor, refs: Tensor | None, lse: Tensor, labels: Any) -> Results:
    classes = Classes(*labels)
    loss, weight_sum, num_pos = class_sum_loss(z, lse, refs, classes, TAU)
    c = 1 / num_pos.clamp_min(1).to(loss.dtype)
    needs = {"needs_z": True, "needs_refs": refs is not None}
    dz, drefs = class_sum_gradients(c, z, refs, classes, TAU, **needs)
    assert dz is not None
    assert dz.dtype == z.dtype
    results = {"loss": loss, "weight_sum": weight_sum, "num_pos": num_pos, "dz": dz}
    return results if drefs is None else results | {"drefs": drefs}


# Half precision is summed in float32 at least; some labels are unknown, some classes have one row.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_refs", [None, 31])
def test_values_and_gradients(dtype: torch.dtype, num_refs: int | None) -> None:
    z, lse = make_embeddings(67, 20, dtype=dtype), torch.linspace(15, 24, 67)
    labels: list[Tensor | None] = [make_labels(67, 30, unknown_share=0.1), None]
    refs = None
    if num_refs is not None:
        refs = make_embeddings(num_refs, 20, dtype=dtype, seed=1)
        labels[1] = make_labels(num_refs, 30, unknown_share=0.1, seed=1)
    truth = by_reference(z.double(), None if refs is None else refs.double(), lse, labels)
    eager = by_reference(z, refs, lse, labels)
    actual = by_class_sums(z, refs, lse, labels)
    assert actual.keys() == truth.keys()
    for name, value in actual.items():
        assert_within_budget(value, truth[name], eager[name], name=name)


# A row that is not finite shows in its class, that of unknown labels too, and in no other.
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("label", [-1, 1])
def test_rows_that_are_not_finite(label: int, value: float) -> None:
    z, labels = make_embeddings(40, 6), make_labels(40, 3)
    labels[:9] = -1
    lse, row = torch.full((40,), 20.0), int((labels == label).nonzero()[3])
    expected = by_class_sums(z, None, lse, (labels, None))
    z[row, 2] = value
    actual = by_class_sums(z, None, lse, (labels, None))
    is_in_class = labels == label
    for name, result in expected.items():
        assert torch.equal(actual[name][~is_in_class], result[~is_in_class]), name
    assert not actual["dz"][is_in_class].isfinite().all(1).any()
    assert actual["loss"].isfinite().all() == (label < 0)
