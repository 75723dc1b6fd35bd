"""Losses whose scalars come from one op: all of them, and every gradient, against float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast import InfoNCELoss, SelfPacedContrastiveLoss, SupConLoss
from spcl_fast.kernels import _class_sums
from spcl_fast.losses.result import ContrastiveLossOutput
from spcl_fast.ops import Impl, Label, contrastive_terms, infonce_terms
from spcl_fast.testing import (
    assert_within_budget,
    make_embeddings,
    make_labels,
    similarity_rounding,
)

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TAU = 0.1
Values = dict[str, Tensor]


def values_of(out: ContrastiveLossOutput, leaves: dict[str, Tensor]) -> Values:
    """Return all scalars, lse, and the gradients of the loss and of every term."""
    total = 2 * out.loss + sum((k + 1) * term.loss for k, term in enumerate(out.terms.values()))
    grads = torch.autograd.grad(total, list(leaves.values()))
    values = {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    values |= {name: x for name, x in out._asdict().items() if isinstance(x, Tensor)}
    for name, term in out.terms.items():
        values |= {f"{field} of {name}": x for field, x in term._asdict().items()}
    return {name: x.detach() for name, x in values.items()}


def check(actual: Values, truth: Values, eager: Values) -> None:
    assert actual.keys() == truth.keys()
    for name, value in actual.items():
        size = truth[name].abs().max().item() if name.startswith("d") else 1.0
        budget: Any = {"factor": 3, "rounding": similarity_rounding(1 / TAU) * size}
        assert_within_budget(value, truth[name], eager[name], name=name, **budget)
        assert value.dtype == eager[name].dtype, name


def labels_of(num_rows: int, device: str, seed: int = 0) -> dict[str, Tensor]:
    """Return labels that are paced, without a pace, and real with a window."""
    options: dict[str, Any] = {"unknown_share": 0.1, "device": device, "seed": seed}
    return {
        "paced": make_labels(num_rows, 6, **options),
        "plain": make_labels(num_rows, 2, **options),
        "real": torch.linspace(0, 1, num_rows, device=device).flip(0),
    }


def run(z: Tensor, bank: Tensor | None, names: list[str], impl: Any, **options: Any) -> Values:
    z = z.clone().requires_grad_()
    device = str(z.device)
    gamma = {"paced": 6.0, "plain": math.inf, "real": torch.tensor(7.0, device=z.device)}
    factor = {"paced": 1.0, "plain": 0.3, "real": 2.0}
    labels = {name: labels_of(len(z), device)[name] for name in names}
    window = {"real": 0.1} if "real" in names else None
    given: dict[str, Any] = {"bank": bank}
    if bank is not None:
        banks = labels_of(len(bank), device, seed=1)
        given["bank_labels"] = {name: banks[name] for name in names}
    loss = SelfPacedContrastiveLoss(TAU, impl=impl, window=window, **options)
    paces: Any = {name: gamma[name] for name in names}
    out = loss(z, labels, paces, {name: factor[name] for name in names}, **given)
    return values_of(out, {"z": z})


# Rows of one plane and of three, of several tiles, wide ones and few; one label of either kind,
# several, with a bank and without.
@pytest.mark.parametrize(
    "names",
    [
        *(pytest.param([x], marks=pytest.mark.interpreted) for x in ("paced", "plain")),
        ["paced", "plain", "real"],
    ],
)
@pytest.mark.parametrize("num_bank", [0, 21])
@pytest.mark.parametrize(
    ("num_rows", "dim", "dtype"),
    [
        (67, 20, FP32),
        pytest.param(70, 128, BF16, marks=pytest.mark.breadth),
        pytest.param(40, 64, FP16, marks=pytest.mark.breadth),
        pytest.param(40, 300, FP32, marks=pytest.mark.breadth),
        pytest.param(40, 320, BF16, marks=pytest.mark.breadth),
        pytest.param(3, 5, FP32, marks=pytest.mark.breadth),
    ],
)
def test_labels(
    num_rows: int, dim: int, dtype: torch.dtype, num_bank: int, names: list[str], device: str
) -> None:
    z = make_embeddings(num_rows, dim, dtype=dtype, device=device)
    bank = make_embeddings(num_bank, dim, dtype=dtype, device=device, seed=1) if num_bank else None
    wide = None if bank is None else bank.double()
    truth, eager = run(z.double(), wide, names, "reference"), run(z, bank, names, "reference")
    check(run(z, bank, names, "triton"), truth, eager)


# Sums of blocks of 128 columns: those of the first label from the launch that merges parts. In a
# bank, a class of one row and many others.
@pytest.mark.parametrize("num_bank", [0, pytest.param(290, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("dim", "dtype"), [(64, BF16), pytest.param(300, FP32, marks=pytest.mark.breadth)]
)
def test_few_big_classes(
    num_bank: int, dim: int, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_class_sums, "_FEW", 0)
    num_rows = 30 if num_bank else 300
    z = make_embeddings(num_rows, dim, dtype=dtype, device=device)
    row, other = torch.arange(num_rows, device=device), torch.arange(num_bank, device=device)
    labels = {"one": (row > 0).long() if num_bank else row // 290, "two": row % 2}
    bank_labels = {"one": other // 280, "two": other % 2}
    bank = make_embeddings(num_bank, dim, dtype=dtype, device=device, seed=1)

    def results(wide: bool, impl: Any) -> Values:
        rows, others = (x.double() if wide else x for x in (z, bank))
        rows = rows.clone().requires_grad_()
        given: Any = {"bank": others, "bank_labels": bank_labels} if num_bank else {}
        out = SelfPacedContrastiveLoss(TAU, impl=impl)(rows, labels, **given)
        return values_of(out, {"z": rows})

    check(results(False, "triton"), results(True, "reference"), results(False, "reference"))


@pytest.mark.breadth
@pytest.mark.parametrize("mode", ["hard", "linear"])
@pytest.mark.parametrize("correct_grad", [False, True])
def test_options(mode: str, correct_grad: bool, device: str) -> None:
    z, names = make_embeddings(50, 20, device=device), ["paced", "real"]
    options: dict[str, Any] = {"mode": mode, "correct_grad": correct_grad}
    truth = run(z.double(), None, names, "reference", **options)
    eager = run(z, None, names, "reference", **options)
    check(run(z, None, names, "triton", **options), truth, eager)


def infonce(anchors: Tensor, refs: Tensor, impl: Any, symmetric: bool, needs: str) -> Values:
    leaves = {"a": anchors.clone().requires_grad_()}
    refs = refs.clone().requires_grad_("refs" in needs)
    loss = InfoNCELoss(TAU, symmetric, learnable_tau="tau" in needs, impl=impl).to(anchors.device)
    if "refs" in needs:
        leaves["refs"] = refs
    if loss.temperature.log_tau is not None:
        leaves["tau"] = loss.temperature.log_tau
    return values_of(loss(leaves["a"], refs), leaves)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("needs", ["refs tau", pytest.param("", marks=pytest.mark.interpreted)])
@pytest.mark.parametrize(
    ("num_rows", "num_refs", "dim", "dtype"),
    [
        (67, 67, 20, FP32),
        pytest.param(33, 50, 64, BF16, marks=pytest.mark.breadth),
        pytest.param(70, 70, 128, FP16, marks=pytest.mark.breadth),
        pytest.param(20, 20, 300, FP32, marks=pytest.mark.breadth),
        pytest.param(2, 2, 4, FP32, marks=pytest.mark.breadth),
    ],
)
def test_infonce(
    num_rows: int,
    num_refs: int,
    dim: int,
    dtype: torch.dtype,
    needs: str,
    symmetric: bool,
    device: str,
) -> None:
    needs = needs.replace(" tau", "") if dtype != FP32 else needs  # a sum that cancels
    anchors = make_embeddings(num_rows, dim, dtype=dtype, device=device)
    refs = make_embeddings(num_refs, dim, dtype=dtype, device=device, seed=1)
    truth = infonce(anchors.double(), refs.double(), "reference", symmetric, needs)
    eager = infonce(anchors, refs, "reference", symmetric, needs)
    check(infonce(anchors, refs, "triton", symmetric, needs), truth, eager)


def test_strided_rows(device: str) -> None:
    both = make_embeddings(60, 40, device=device)
    z = both[::2, ::2]
    assert not z.is_contiguous()
    plain = run(z.contiguous(), None, ["paced"], "triton")
    for name, value in run(z, None, ["paced"], "triton").items():
        torch.testing.assert_close(value, plain[name], rtol=0, atol=0)
    one, other = (
        infonce(z, z, "triton", True, "refs"),
        infonce(z + 0, z + 0, "triton", True, "refs"),
    )
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0)


@pytest.mark.breadth
def test_what_has_no_op_of_its_own(device: str) -> None:
    z, y = make_embeddings(20, 8, device=device), make_labels(20, 3, device=device)
    label, bank = Label(y, 6.0, None, y[:4]), z[:4].clone()
    given: dict[str, Any] = {"mode": "linear", "impl": "triton"}
    assert contrastive_terms(z, TAU, [label], [1.0], bank=bank, **given) is not None
    learnt = bank.clone().requires_grad_()
    assert contrastive_terms(z, TAU, [label], [1.0], bank=learnt, **given) is None
    assert contrastive_terms(z[:0], TAU, [Label(y[:0])], [1.0], **given) is None
    given["impl"] = "reference"
    assert contrastive_terms(z, TAU, [Label(y)], [1.0], **given) is None
    assert infonce_terms(z, z, TAU, symmetric=True, impl="reference") is None
    with pytest.raises(ValueError, match=r"labels must be \(20,\), got \(19,\)"):
        contrastive_terms(z, TAU, [Label(y[1:])], [1.0], mode="linear", impl="triton")
    with pytest.raises(ValueError, match=r"ref_values must be None without references, got \(4,\)"):
        contrastive_terms(z, TAU, [label], [1.0], mode="linear", impl="triton")


# For GPUs: an emulator has one schedule, as the interpreter has.
@pytest.mark.interpreted
@pytest.mark.slow
def test_bits_repeat(device: str) -> None:
    z = make_embeddings(67, 20, device=device)
    bank = make_embeddings(9, 20, device=device, seed=1)
    names = ["paced", "plain", "real"]
    first, second = (run(z, bank, names, "triton") for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.interpreted
@pytest.mark.parametrize("problem", ["supcon", "infonce"])
def test_func_grad(problem: str, device: str) -> None:
    z, refs = make_embeddings(9, 5, device=device), make_embeddings(9, 5, seed=1, device=device)
    labels = make_labels(9, 3, device=device)

    def gradient(impl: Impl) -> Tensor:
        if problem == "supcon":
            supcon = SupConLoss(TAU, impl=impl)
            found: Tensor = torch.func.grad(lambda x: supcon(x, labels).loss)(z)
            return found
        infonce = InfoNCELoss(TAU, impl=impl)
        return torch.func.grad(lambda x: infonce(x, refs).loss)(z)  # type: ignore[no-any-return]

    torch.testing.assert_close(gradient("triton"), gradient("reference"), rtol=1e-4, atol=1e-5)
