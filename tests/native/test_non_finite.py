"""What is not finite reaches the same values with impl="native" as with impl="reference".

The contract is that of a dense product: a pair without weight multiplies the other row by 0, and
0 times inf or NaN is NaN. So lse, losses and weights are not finite where a pair of the row says
so, and gradients also wherever a feature of any row on the other side is not finite, in that
feature. Whether such a value is NaN or an infinity is left open.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from spcl_fast import SelfPacedContrastiveLoss, pair_lse, positive_pair_loss
from spcl_fast.testing import make_embeddings, make_labels

Results = dict[str, Tensor]
Plant = tuple[bool, int, int, float]  # in refs, row, feature, value

VALUES = [math.nan, math.inf, -math.inf]
# One-hot with exponents of 1e9, usual, flat. Below, losses of equal pairs are rounding that squares
# to infinity, with either sign.
TAUS = [1e-9, 1e-4, 0.07, 1.0, 1e4, 1e9]


def plant(sides: list[Tensor], plants: list[Plant]) -> None:
    for in_refs, row, feature, value in plants:
        side = sides[-1] if in_refs else sides[0]
        side[row % side.shape[0], feature % side.shape[1]] = value


def gradients(total: Tensor, leaves: dict[str, Tensor]) -> Results:
    grads = torch.autograd.grad(total, list(leaves.values()))
    return {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}


def lse_results(sides: list[Tensor], tau: float, impl: Any) -> Results:
    leaves = {"tau": torch.tensor(tau), "z": sides[0].clone()}
    for leaf in leaves.values():
        leaf.requires_grad_()
    if len(sides) == 1:
        out = {"lse": pair_lse(leaves["z"], leaves["tau"], impl=impl)}
    else:
        leaves["refs"] = sides[1].clone().requires_grad_()
        lse, lse_refs = pair_lse(leaves["z"], leaves["tau"], refs=leaves["refs"], impl=impl)
        out = {"lse": lse, "lse_refs": lse_refs}
    total = torch.cat(list(out.values())).sum()
    return out | gradients(total, leaves)


def pair_loss_results(
    sides: list[Tensor], lse: Tensor, labels: list[Tensor], tau: float, impl: Any, **options: Any
) -> Results:
    leaves = {"tau": torch.tensor(tau), "z": sides[0].clone(), "lse": lse.clone()}
    for leaf in leaves.values():
        leaf.requires_grad_()
    if len(sides) == 2:
        leaves["refs"] = sides[1].clone().requires_grad_()
        options |= {"refs": leaves["refs"], "ref_labels": labels[1]}
    z, lse, tau_tensor = leaves["z"], leaves["lse"], leaves["tau"]
    out = positive_pair_loss(z, lse, labels[0], tau=tau_tensor, impl=impl, **options)
    return out._asdict() | gradients(out.loss.sum(), leaves)


def assert_not_finite_in_the_same_places(actual: Results, expected: Results) -> None:
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        places, expected_places = ~value.isfinite(), ~expected[name].isfinite()
        message = f"{name}: {places.nonzero().tolist()}, not {expected_places.nonzero().tolist()}"
        assert torch.equal(places, expected_places), message


def plants() -> st.SearchStrategy[list[Plant]]:
    one = st.tuples(st.booleans(), st.integers(0, 39), st.integers(0, 19), st.sampled_from(VALUES))
    return st.lists(one, min_size=1, max_size=3)


# The examples: every similarity of a row is -inf; two infinite rows of three; a row on its own.
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(
    num_rows=st.integers(1, 40),
    num_refs=st.one_of(st.none(), st.integers(1, 40)),
    dim=st.integers(1, 20),
    tau=st.sampled_from(TAUS),
    where=plants(),
)
@example(num_rows=2, num_refs=None, dim=1, tau=1.0, where=[(False, 0, 0, -math.inf)])
@example(
    num_rows=3,
    num_refs=None,
    dim=5,
    tau=1.0,
    where=[(False, 0, 2, math.inf), (False, 2, 4, math.inf)],
)
@example(num_rows=1, num_refs=None, dim=3, tau=1.0, where=[(False, 0, 0, math.inf)])
def test_pair_lse(
    num_rows: int, num_refs: int | None, dim: int, tau: float, where: list[Plant]
) -> None:
    sides = [make_embeddings(num_rows, dim)]
    if num_refs is not None:
        sides.append(make_embeddings(num_refs, dim, seed=1))
    plant(sides, where)
    expected, actual = (lse_results(sides, tau, impl) for impl in ("reference", "native"))
    assert_not_finite_in_the_same_places(actual, expected)


# lse: what it is, and a finite one, which leaves it to the pairs to say what is not finite.
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(
    num_rows=st.integers(1, 40),
    num_refs=st.one_of(st.none(), st.integers(1, 40)),
    dim=st.integers(1, 20),
    tau=st.sampled_from(TAUS),
    where=plants(),
    num_classes=st.sampled_from([1, 3, 40]),
    options=st.fixed_dictionaries(
        {
            "gamma": st.sampled_from([3.0, math.inf]),
            "mode": st.sampled_from(["hard", "linear"]),
            "window": st.sampled_from([None, 1.0]),
        }
    ),
    has_finite_lse=st.booleans(),
)
def test_positive_pair_loss(
    num_rows: int,
    num_refs: int | None,
    dim: int,
    tau: float,
    where: list[Plant],
    num_classes: int,
    options: dict[str, Any],
    has_finite_lse: bool,
) -> None:
    sides = [make_embeddings(num_rows, dim)]
    labels = [make_labels(num_rows, num_classes, unknown_share=0.1)]
    if num_refs is not None:
        sides.append(make_embeddings(num_refs, dim, seed=1))
        labels.append(make_labels(num_refs, num_classes, unknown_share=0.1, seed=1))
    plant(sides, where)
    lse = lse_results(sides, tau, "reference")["lse"].detach()
    lse = torch.full_like(lse, 4.0) if has_finite_lse else lse
    expected, actual = (
        pair_loss_results(sides, lse, labels, tau, impl, **options)
        for impl in ("reference", "native")
    )
    assert_not_finite_in_the_same_places(actual, expected)


# Through the gradient that labels share, with a label that nobody knows. 3 rows: two infinite ones
# leave one. 40: one block, whose powers would be bounded. 200: two blocks.
@pytest.mark.parametrize("gamma", [3.0, math.inf])
@pytest.mark.parametrize("mode", ["hard", "linear"])
@pytest.mark.parametrize("num_rows", [3, 40, 200])
@pytest.mark.parametrize("where", [[0], [0, 2]])
@pytest.mark.parametrize("value", VALUES)
def test_loss(value: float, where: list[int], num_rows: int, mode: Any, gamma: float) -> None:
    sides = [make_embeddings(num_rows, 6)]
    plant(sides, [(False, row, row, value) for row in where])
    labels = {"a": make_labels(num_rows, 3), "b": torch.full((num_rows,), -1)}
    results = []
    for impl in ("reference", "native"):
        z = sides[0].clone().requires_grad_()
        loss = SelfPacedContrastiveLoss(tau=0.1, mode=mode, impl=impl)
        out = loss(z, labels, gamma)
        results.append({"loss": out.loss} | gradients(out.loss, {"z": z}))
    assert_not_finite_in_the_same_places(results[1], results[0])
