"""The scalars of a loss that native computes in one op on a CPU, against float64."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast import SelfPacedContrastiveLoss
from spcl_fast.native import get_tile_cache_mib, set_tile_cache_mib
from spcl_fast.ops import Impl, Label, contrastive_terms, infonce_terms
from spcl_fast.testing import (
    assert_within_budget,
    make_embeddings,
    make_labels,
    similarity_rounding,
)

TAU = 0.1


def values_of(
    z: Tensor, labels: dict[str, Tensor], impl: Impl, **options: Any
) -> dict[str, Tensor]:
    """Return every scalar, lse, and the gradient of the loss and of each term."""
    z = z.clone().requires_grad_()
    gamma, weight = options.pop("gamma"), options.pop("weight")
    window = {name: 2.0 for name in labels if name == "age"}
    loss = SelfPacedContrastiveLoss(TAU, impl=impl, window=window, **options)
    out = loss(z, labels, gamma, weight)
    values = {name: x.detach() for name, x in out._asdict().items() if isinstance(x, Tensor)}
    for name, term in out.terms.items():
        values |= {f"{field} of {name}": x.detach() for field, x in term._asdict().items()}
    total = 2 * out.loss + sum((k + 1) * term.loss for k, term in enumerate(out.terms.values()))
    return values | {"dz": torch.autograd.grad(total, z)[0]}


@pytest.mark.parametrize("mode", ["hard", "linear"])
@pytest.mark.parametrize("correct_grad", [False, True])
@pytest.mark.parametrize(
    "gamma", [math.inf, {"slice": 5.0, "patient": math.inf, "age": torch.tensor(4.0)}]
)
@pytest.mark.parametrize("num_rows", [1, 2, 67, 301])
def test_against_float64(mode: str, correct_grad: bool, gamma: Any, num_rows: int) -> None:
    z = make_embeddings(num_rows, 24)
    patient = make_labels(num_rows, 3, seed=1) * 10**12  # too far apart to be counted
    patient[::5] = -1  # unknown
    labels = {
        "slice": make_labels(num_rows, 7),
        "patient": patient,
        "age": make_labels(num_rows, 40, seed=2).float(),
    }
    options = {"mode": mode, "correct_grad": correct_grad, "gamma": gamma}
    options["weight"] = {"slice": 1.0, "patient": 0.5, "age": 2.0}
    actual = values_of(z, labels, "native", **options)
    truth = values_of(z.double(), labels, "reference", **options)
    eager = values_of(z, labels, "reference", **options)
    assert actual.keys() == truth.keys()
    for name, value in actual.items():
        size = truth[name].abs().max().item() if name == "dz" else 1.0
        rounding = similarity_rounding(1 / TAU) * size
        assert_within_budget(value, truth[name], eager[name], rounding=rounding, name=name)


def test_half_precision_rows_cost_only_the_rounding_of_their_gradient() -> None:
    rows, labels = make_embeddings(40, 16).bfloat16(), make_labels(40, 4)

    def gradients(z: Tensor) -> tuple[Tensor, ...]:
        loss = SelfPacedContrastiveLoss(TAU, learnable_tau=True, impl="native")
        leaf = z.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf, labels, 5.0).loss, [leaf, *loss.parameters()])

    dz, dlog_tau = gradients(rows)
    same_dz, same_dlog_tau = gradients(rows.float())
    assert torch.equal(dz, same_dz.bfloat16())
    assert dlog_tau == same_dlog_tau


def test_terms_are_left_to_what_composes_them() -> None:
    z, bank = make_embeddings(8, 4), make_embeddings(5, 4, seed=1)
    label, of_bank = Label(make_labels(8, 2)), make_labels(5, 2)
    options: dict[str, Any] = {"mode": "linear", "impl": "native"}
    assert contrastive_terms(z, TAU, [label], [1.0], **options) is not None
    with_bank = [label._replace(ref_values=of_bank)]
    assert contrastive_terms(z, TAU, with_bank, [1.0], bank=bank, **options) is None
    assert contrastive_terms(z[:0], TAU, [Label(label.values[:0])], [1.0], **options) is None
    assert contrastive_terms(z, TAU, [label], [torch.tensor(1.0)], **options) is None


def test_a_tensor_as_weight_has_a_gradient() -> None:
    z, labels = make_embeddings(12, 4), {"slice": make_labels(12, 3)}
    weight = torch.tensor(0.5, requires_grad=True)
    out = SelfPacedContrastiveLoss(TAU, impl="native")(z, labels, 5.0, {"slice": weight})
    (dweight,) = torch.autograd.grad(out.loss, weight)
    torch.testing.assert_close(dweight, out.terms["slice"].loss)


def test_op_refuses_lists_of_other_lengths() -> None:
    z, y = make_embeddings(8, 4), make_labels(8, 2)
    op = torch.ops.spcl_fast.contrastive_terms_fwd_native
    with pytest.raises(ValueError, match="gamma and windows must have one value a label, 1, got 2"):
        op(z, TAU, [y], [1.0, 2.0], [-1.0], [1.0], False, False, 0)
    with pytest.raises(ValueError, match="factors must have one value a label, 1, got 0"):
        op(z, TAU, [y], [1.0], [-1.0], [], False, False, 0)


def test_backward_refuses_what_no_forward_returned() -> None:
    z, y = make_embeddings(8, 4), make_labels(8, 2)
    given = [y], [5.0], [-1.0]
    forward = torch.ops.spcl_fast.contrastive_terms_fwd_native
    loss, _, lse, _, _, *kept = forward(z, TAU, *given, [1.0], False, False, 0)
    backward = torch.ops.spcl_fast.contrastive_terms_bwd_native
    with pytest.raises(ValueError, match=r"dloss must be Float \[\] on the CPU, got Double"):
        backward(z, lse, TAU, *given, False, [], loss.double(), None, *kept)
    kept[0] = kept[0][:, :7]
    with pytest.raises(ValueError, match=r"weight_sum must be Float \[1, 8\] on the CPU, got"):
        backward(z, lse, TAU, *given, False, [], loss, None, *kept)


@pytest.mark.parametrize("name", ["contrastive_terms", "infonce_terms"])
def test_tiles_are_cached_where_a_gradient_can_be_asked_for(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, label = make_embeddings(8, 4), Label(make_labels(8, 2))
    asked: list[int] = []
    module = importlib.import_module(f"spcl_fast.native.{name}")

    def none(num_rows: int, _num_refs: int | None) -> int:
        asked.append(num_rows)
        return 0

    monkeypatch.setattr(module, "cache_size", none)

    def step(rows: Tensor) -> None:
        if name == "infonce_terms":
            infonce_terms(rows, z, TAU, symmetric=True, impl="native")
        else:
            contrastive_terms(rows, TAU, [label], [1.0], mode="linear", impl="native")

    step(z)
    with torch.no_grad():
        step(z.clone().requires_grad_())
    assert not asked
    step(z.clone().requires_grad_())
    assert asked == [8]


def test_gradients_without_cached_tiles() -> None:
    z, labels = make_embeddings(200, 16), {"slice": make_labels(200, 5)}
    options: dict[str, Any] = {"gamma": 5.0, "weight": 1.0}
    cached = values_of(z, labels, "native", **options)["dz"]
    mib = get_tile_cache_mib()
    set_tile_cache_mib(0)
    try:
        torch.testing.assert_close(values_of(z, labels, "native", **options)["dz"], cached)
    finally:
        set_tile_cache_mib(mib)
