"""`positive_pair_loss`: chunked against the reference, values and all gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast import pair_lse, positive_pair_loss
from spcl_fast.chunked import _panels
from spcl_fast.testing import (
    assert_within_budget,
    make_embeddings,
    make_labels,
    similarity_rounding,
)

MODES = ["hard", "linear"]


def value_and_gradients(
    z: Tensor, lse: Tensor, labels: Tensor, tau: float, impl: Any, **options: Any
) -> dict[str, Tensor]:
    """Return the outputs and the gradients of a weighted sum of the loss, lse held apart."""
    z, wide = z.clone().requires_grad_(), torch.promote_types(z.dtype, torch.float32)
    lse = lse.to(wide).clone().requires_grad_()
    tau_tensor = torch.tensor(tau, dtype=wide, requires_grad=True)
    if options.get("refs") is not None:
        options["refs"] = options["refs"].clone().requires_grad_()
    out = positive_pair_loss(z, lse, labels, tau=tau_tensor, impl=impl, **options)
    (torch.linspace(-1, 2, z.shape[0], dtype=wide) * out.loss).sum().backward()
    named: dict[str, Any] = {
        "loss": out.loss.detach(),
        "weight_sum": out.weight_sum,
        "num_pos": out.num_pos,
        "dz": z.grad,
        "dlse": lse.grad,
        "dtau": tau_tensor.grad,
    }
    if options.get("refs") is not None:
        named["drefs"] = options["refs"].grad
    return named


def gap_gamma(z: Tensor, lse: Tensor, tau: float) -> float:
    """Return a pace in the middle of a wide gap between pair losses: no rounding crosses it."""
    losses = (lse.double()[:, None] - z.double() @ z.double().T / tau).flatten().sort().values
    middle = losses[len(losses) // 3 : 2 * len(losses) // 3 + 1]
    if len(middle) < 2:
        return 1.0
    k = int(middle.diff().argmax())
    return max(float(middle[k] + middle[k + 1]) / 2, 1e-3)


def label_cases(num_rows: int) -> dict[str, tuple[Tensor, float | None]]:
    """Return labels by what is special about them, each with its window."""
    position = torch.linspace(0, 1, num_rows)[torch.randperm(num_rows)]
    return {
        "a few classes, some unknown": (make_labels(num_rows, 7, unknown_share=0.2), None),
        "one class": (torch.zeros(num_rows, dtype=torch.int64), None),
        "all distinct": (torch.randperm(num_rows), None),
        "all unknown": (torch.full((num_rows,), -1), None),
        "small integers": (make_labels(num_rows, 3).to(torch.int8), None),
        "far apart": (make_labels(num_rows, 5) * 10**17, None),
        "float window": (position.masked_fill(position < 0.1, -1), 0.15),
        "NaN and infinity": (
            position.masked_fill(position < 0.2, math.nan) / (position < 0.9),
            0.1,
        ),
        "integer window": (make_labels(num_rows, 20, unknown_share=0.1), 2),
        "window of zero": (make_labels(num_rows, 5).float(), 0.0),
    }


# 1, 2: no pair, one pair. 67: many ragged panels. The labels: see label_cases.
@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("name", list(label_cases(1)))
@pytest.mark.parametrize("num_rows", [1, 2, 67])
@pytest.mark.parametrize("mode", MODES)
def test_chunked_equals_reference(mode: Any, num_rows: int, name: str) -> None:
    labels, window = label_cases(num_rows)[name]
    z = make_embeddings(num_rows, 5, dtype=torch.float64)
    lse = pair_lse(z, 0.1)
    for gamma in (gap_gamma(z, lse, 0.1), math.inf):
        options = {"gamma": gamma, "mode": mode, "window": window}
        exact = value_and_gradients(z, lse, labels, 0.1, "reference", **options)
        for key, value in value_and_gradients(z, lse, labels, 0.1, "chunked", **options).items():
            torch.testing.assert_close(value, exact[key], rtol=1e-10, atol=1e-11, msg=key)


# References: none with a label of the rows, one, more and fewer than rows.
@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("num_refs", [1, 13, 90])
@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("num_classes", [1, 6, 500])
def test_chunked_equals_reference_with_refs(
    num_refs: int, window: float | None, num_classes: int
) -> None:
    z, labels = make_embeddings(67, 5, dtype=torch.float64), make_labels(67, num_classes)
    labels[::9] = -1
    refs = make_embeddings(num_refs, 5, dtype=torch.float64, seed=1)
    ref_labels = make_labels(num_refs, num_classes, unknown_share=0.2, seed=1)
    lse = pair_lse(z, 0.1, refs=refs)[0]
    for gamma in (gap_gamma(z, lse, 0.1), math.inf):
        options = {"gamma": gamma, "mode": "linear", "window": window}
        options |= {"refs": refs, "ref_labels": ref_labels}
        exact = value_and_gradients(z, lse, labels, 0.1, "reference", **options)
        for key, value in value_and_gradients(z, lse, labels, 0.1, "chunked", **options).items():
            torch.testing.assert_close(value, exact[key], rtol=1e-10, atol=1e-11, msg=key)


# tau: one-hot, usual, flat softmax. gamma: weights between 0 and 1, the class sums.
@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("tau", [0.005, 0.07, 10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("is_paced", [True, False])
def test_every_dtype(tau: float, dtype: torch.dtype, mode: Any, is_paced: bool) -> None:
    z, labels = make_embeddings(67, 16, dtype=dtype), make_labels(67, 6, unknown_share=0.1)
    lse = pair_lse(z.double(), tau)
    options = {"gamma": gap_gamma(z, lse, tau) if is_paced else math.inf, "mode": mode}
    truth = value_and_gradients(
        z.double(), lse.float().double(), labels, tau, "reference", **options
    )
    eager = value_and_gradients(z, lse.float(), labels, tau, "reference", **options)
    rounding = similarity_rounding(1 / tau)
    for key, value in value_and_gradients(
        z, lse.float(), labels, tau, "chunked", **options
    ).items():
        if key == "dtau":  # a sum of terms of either sign: measured against their sizes
            size = (z.double() * truth["dz"]).abs().sum().item() / tau
            assert abs(value.item() - truth[key].item()) <= 1e-5 * size
        else:
            # weights are off by the rounding of a pair loss, relative to the pace
            size = truth[key].abs().max().item() / options["gamma"] if key != "loss" else 1.0
            budget = {"factor": 3, "rounding": rounding * size}
            assert_within_budget(value, truth[key].double(), eager[key], name=key, **budget)


# 1e3 at tau 0.005: similarities of 2e8, where float32 resolves no more than 16.
@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("norm", [1e-3, 1e2, 1e3])
@pytest.mark.parametrize("tau", [0.005, 10.0])
def test_any_norm(norm: float, tau: float) -> None:
    z, labels = make_embeddings(67, 5, norm=norm), make_labels(67, 6)
    lse = pair_lse(z.double(), tau).float()
    options = {"gamma": gap_gamma(z, lse, tau), "mode": "linear"}
    truth = value_and_gradients(z.double(), lse.double(), labels, tau, "reference", **options)
    eager = value_and_gradients(z, lse, labels, tau, "reference", **options)
    for key, value in value_and_gradients(z, lse, labels, tau, "chunked", **options).items():
        size = truth[key].abs().max().item() / options["gamma"] if key != "loss" else 1.0
        budget = {"factor": 10, "rounding": similarity_rounding(norm**2 / tau) * size}
        assert_within_budget(value, truth[key].double(), eager[key], name=key, **budget)


@pytest.mark.usefixtures("small_panels")
def test_a_tensor_gamma_equals_a_number() -> None:
    z, labels = make_embeddings(30, 4, dtype=torch.float64), make_labels(30, 4)
    lse = pair_lse(z, 0.1)
    for gamma in (4.0, math.inf):
        for mode in MODES:
            options = {"mode": mode}
            number = value_and_gradients(z, lse, labels, 0.1, "chunked", gamma=gamma, **options)
            tensor = value_and_gradients(
                z, lse, labels, 0.1, "chunked", gamma=torch.tensor(gamma), **options
            )
            for key, value in tensor.items():
                torch.testing.assert_close(value, number[key], msg=key)


@pytest.mark.usefixtures("small_panels")
def test_each_gradient_alone() -> None:
    refs, ref_labels = make_embeddings(9, 4, seed=1), make_labels(9, 3, seed=1)
    z, labels = make_embeddings(20, 4), make_labels(20, 3)
    lse = pair_lse(z, 0.2, refs=refs)[0]
    for gamma in (3.0, math.inf):
        full = value_and_gradients(
            z,
            lse,
            labels,
            0.2,
            "chunked",
            gamma=gamma,
            mode="linear",
            refs=refs,
            ref_labels=ref_labels,
        )
        for name in ("dz", "dlse", "dtau", "drefs"):
            leaves = {"dz": z, "dlse": lse, "dtau": torch.tensor(0.2), "drefs": refs}
            leaves = {key: x.clone() for key, x in leaves.items()}
            leaf = leaves[name].requires_grad_()
            out = positive_pair_loss(
                leaves["dz"],
                leaves["dlse"],
                labels,
                tau=leaves["dtau"],
                gamma=gamma,
                mode="linear",
                refs=leaves["drefs"],
                ref_labels=ref_labels,
                impl="chunked",
            )
            (torch.linspace(-1, 2, 20) * out.loss).sum().backward()
            torch.testing.assert_close(leaf.grad, full[name], msg=name)


def test_intervals_are_covered_once_and_little_else_is_visited() -> None:
    last: list[int] = []
    num_rows = 5000
    for count in (1, 2, 3000, 997, 1000):  # classes of very unequal size
        last += [len(last) + count] * count
    seen = torch.zeros(num_rows, num_rows, dtype=torch.int8)
    for r0, r1, c0, c1 in _panels.interval_panels(list(range(num_rows)), last, 1 << 18):
        assert (r1 - r0) * (c1 - c0) <= 1 << 18
        seen[r0:r1, c0:c1] += 1
    for i in range(0, num_rows, 7):
        assert (seen[i, i : last[i]] == 1).all()
    useful = sum(stop - row for row, stop in enumerate(last))
    assert int(seen.sum()) < 1.3 * useful
