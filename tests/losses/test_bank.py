"""A memory bank: anchors against the batch and the bank is one dense softmax over both."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast import SelfPacedContrastiveLoss, SupConLoss, native
from spcl_fast.ops import PositivePairLoss, _contract
from spcl_fast.ops._impl import fused
from spcl_fast.ops.composed.merge import merge_lse, merge_pairs
from spcl_fast.testing import make_embeddings, make_labels

built = pytest.mark.skipif(not native.is_built(), reason="spcl_fast._C is not built")


def dense(
    z: Tensor,
    bank: Tensor,
    positive: Tensor,  # (N, N + M)
    tau: Tensor,
    gamma: float,
    mode: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, mean weight and lse."""
    N, M = len(z), len(bank)
    not_self = torch.cat([~torch.eye(N, dtype=torch.bool), torch.ones(N, M, dtype=torch.bool)], 1)
    positive = positive & not_self
    sim = (z @ torch.cat([z, bank]).T / tau).masked_fill(~not_self, -math.inf)
    lse = sim.logsumexp(1)
    pair_loss = torch.where(positive, lse[:, None] - sim, 0)
    weight = (pair_loss.detach() <= gamma).double()
    if mode == "linear":
        weight = (1 - pair_loss.detach() / gamma).clamp_min(0)
    weight = weight * positive
    rows = (weight * pair_loss).sum(1) / positive.sum(1).clamp_min(1)
    loss = rows.sum() / (positive.sum(1) > 0).sum()
    return loss, weight.sum() / positive.sum(), lse


# 5: a part of the pairs is off; inf: sums over classes. 63 rows, 107 in the bank: ragged blocks.
@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("gamma", [5.0, math.inf])
@pytest.mark.parametrize("mode", ["hard", "linear"])
@pytest.mark.parametrize("window", [None, 1.5])
@pytest.mark.parametrize("impl", ["reference", "chunked", pytest.param("native", marks=built)])
def test_equals_a_dense_softmax(gamma: float, mode: Any, window: float | None, impl: Any) -> None:
    z, bank = make_embeddings(63, 6), make_embeddings(107, 6, seed=1)
    labels, bank_labels = make_labels(63, 9, unknown_share=0.2), make_labels(107, 11, seed=1)
    bank_labels[5:9] = -1
    both = torch.cat([labels, bank_labels])
    positive = (labels[:, None] - both).abs() <= (window or 0)
    positive &= (labels >= 0)[:, None] & (both >= 0)
    dtype = torch.float32 if impl == "native" else torch.float64
    exact = [z.double().requires_grad_(), bank.double().requires_grad_()]
    leaves = [z.to(dtype).requires_grad_(), bank.to(dtype).requires_grad_()]
    loss = SelfPacedContrastiveLoss(
        0.2, mode, window=window, learnable_tau=True, impl=impl
    ).double()
    (log_tau,) = loss.parameters()
    truth, mean_weight, lse = dense(exact[0], exact[1], positive, log_tau.exp(), gamma, mode)
    out = loss(leaves[0], labels, gamma, bank=leaves[1], bank_labels=bank_labels)
    close: Any = {"rtol": 1e-5, "atol": 1e-6, "check_dtype": False}
    torch.testing.assert_close(out.loss, truth, **close)
    torch.testing.assert_close(out.lse, lse.detach(), **close)
    torch.testing.assert_close(out.mean_weight, mean_weight, **close)
    assert out.num_anchors.item() == (labels >= 0).sum().item()
    expected = torch.autograd.grad(truth, [*exact, log_tau])
    actual = torch.autograd.grad(out.loss, [*leaves, log_tau])
    for gradient, true in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient, true, **close)


def test_several_labels_and_supcon() -> None:
    z, bank = make_embeddings(20, 4).double(), make_embeddings(31, 4, seed=1).double()
    labels = {"a": make_labels(20, 3), "b": make_labels(20, 5, seed=1)}
    banks = {"b": make_labels(31, 5, seed=3), "a": make_labels(31, 3, seed=2)}
    out = SelfPacedContrastiveLoss(0.2)(z, labels, bank=bank, bank_labels=banks)
    alone = [SupConLoss(0.2)(z, labels[k], bank=bank, bank_labels=banks[k]) for k in "ab"]
    torch.testing.assert_close(out.loss, alone[0].loss + alone[1].loss)
    for name, term in zip("ab", alone, strict=True):
        torch.testing.assert_close(out.terms[name].loss, term.loss)


@pytest.mark.parametrize("impl", ["reference", "chunked", pytest.param("native", marks=built)])
def test_empty_banks_and_batches(impl: Any) -> None:
    z, labels = make_embeddings(20, 4), make_labels(20, 3)
    loss, none = SupConLoss(0.2, impl=impl), torch.zeros(0, dtype=torch.int64)
    out = loss(z, labels, bank=z[:0], bank_labels=none)
    torch.testing.assert_close(out.loss, loss(z, labels).loss)
    assert loss(z[:0], none, bank=z, bank_labels=labels).loss.item() == 0
    # one row, whose only positive and only negatives are in the bank
    leaf = z[:1].clone().requires_grad_()
    out = loss(leaf, labels[:1], bank=z[1:], bank_labels=labels[1:])
    sim = z[:1] @ z[1:].T / 0.2
    expected = sim.logsumexp(1) - sim[:, labels[1:] == labels[0]].mean()
    torch.testing.assert_close(out.loss, expected[0])
    out.loss.backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


# Gradients of the references are computed for a bank that asks for them and for no other.
@pytest.mark.parametrize("needs_grad", [False, True])
def test_a_bank_without_gradient_costs_none(
    needs_grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def recording(impl: str, function: str) -> Any:
        def run(*args: Any, **options: Any) -> Any:
            asked.append(options.get("needs_refs", False))
            return fused(impl, function)(*args, **options)

        return run

    monkeypatch.setattr(_contract, "fused", recording)
    z, labels = make_embeddings(9, 4).requires_grad_(), make_labels(9, 2)
    bank = make_embeddings(9, 4, seed=1).requires_grad_(needs_grad)
    out = SupConLoss(impl="chunked")(z, labels, bank=bank, bank_labels=labels)
    out.loss.backward()
    assert len(asked) == 8  # two ops, forward and backward, batch and bank
    assert sum(asked) == (2 if needs_grad else 0)


def test_merging_with_nothing() -> None:
    nothing = torch.full((3,), -math.inf, requires_grad=True)
    some = torch.tensor([0.0, -math.inf, 2.0], requires_grad=True)
    lse = merge_lse([nothing, some, some])
    assert lse.tolist() == pytest.approx([math.log(2), -math.inf, 2 + math.log(2)])
    lse[[0, 2]].sum().backward()
    assert some.grad is not None
    assert nothing.grad is not None
    assert some.grad.tolist() == pytest.approx([1, 0, 1])
    assert nothing.grad.tolist() == [0, 0, 0]
    one = PositivePairLoss(torch.tensor([1.0, 0]), torch.tensor([2.0, 0]), torch.tensor([3, 0]))
    two = PositivePairLoss(torch.tensor([5.0, 0]), torch.tensor([1.0, 0]), torch.tensor([1, 0]))
    merged = merge_pairs([one, two])
    assert [x.tolist() for x in merged] == [[2.0, 0], [3.0, 0], [4, 0]]


def bad_calls() -> list[tuple[type[Exception], str, dict[str, Any]]]:
    ids = torch.zeros(3, dtype=torch.int64)
    bank = {"bank": torch.ones(3, 2), "bank_labels": ids}
    return [
        (ValueError, "given together, got bank alone", {"bank": torch.ones(3, 2)}),
        (ValueError, "given together, got bank_labels alone", {"bank_labels": ids}),
        (ValueError, r"bank_labels must be \(3,\)", bank | {"bank_labels": ids[:2]}),
        (ValueError, "bank_labels must be a single value", bank | {"bank_labels": {"a": ids}}),
        (ValueError, "bank_labels must be a dict", bank | {"labels": {"a": torch.zeros(4).long()}}),
        (ValueError, r"bank must be \(M, 2\)", bank | {"bank": torch.ones(3, 5)}),
        (TypeError, "bank must have the dtype of z", bank | {"bank": torch.ones(3, 2).double()}),
    ]


@pytest.mark.parametrize(("error", "message", "change"), bad_calls())
def test_raises(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    good: dict[str, Any] = {"z": torch.ones(4, 2), "labels": torch.zeros(4, dtype=torch.int64)}
    with pytest.raises(error, match=message):
        SelfPacedContrastiveLoss()(**good | change)
