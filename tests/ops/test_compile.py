"""torch.compile takes the losses whole, and the ops behind them state their shapes truly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from spcl_fast import InfoNCELoss, NTXentLoss, SelfPacedContrastiveLoss, SupConLoss, pair_lse
from spcl_fast.compat import monai, open_clip, spcl
from spcl_fast.ops import Impl
from spcl_fast.pacing import quantile_gamma
from spcl_fast.testing import make_embeddings, make_labels


def several_labels() -> Callable[[Tensor], Tensor]:
    labels = {"position": make_labels(40, 5), "time": torch.linspace(0, 1, 40)}
    gamma = {"position": math.inf, "time": 5.0}
    loss = SelfPacedContrastiveLoss(window={"time": 0.1}, learnable_tau=True)
    return lambda z: loss(z, labels, gamma).loss


def quantile() -> Callable[[Tensor], Tensor]:
    labels = make_labels(40, 5)
    loss = SelfPacedContrastiveLoss(0.1)

    def run(z: Tensor) -> Tensor:
        gamma = quantile_gamma(z, pair_lse(z, 0.1), labels, tau=0.1, share=0.5)
        return loss(z, labels, gamma).loss  # type: ignore[no-any-return]

    return run


def views() -> Callable[[Tensor], Tensor]:
    loss = NTXentLoss()
    return lambda z: loss(z[:20], z[20:]).loss


def towers() -> Callable[[Tensor], Tensor]:
    loss = InfoNCELoss(learnable_tau=True)
    return lambda z: loss(z[:15], z[15:]).loss


@pytest.mark.parametrize(
    "make",
    [several_labels, towers, *(pytest.param(x, marks=pytest.mark.slow) for x in (quantile, views))],
)
def test_fullgraph(make: Callable[[], Callable[[Tensor], Tensor]]) -> None:
    function = make()
    results = []
    # aot_eager traces forward and backward as the default backend does, without its C++ compiler
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for run in (function, compiled):
        z = make_embeddings(40, 8, dtype=torch.float64).requires_grad_()
        loss = run(z)
        loss.backward()
        results.append((loss.detach(), z.grad))
    torch.testing.assert_close(results[1], results[0])


def test_fullgraph_with_a_gamma_that_changes() -> None:
    labels = make_labels(40, 5)
    loss = SelfPacedContrastiveLoss()

    def step(z: Tensor, gamma: float) -> Tensor:
        return loss(z, labels, gamma).loss

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    z = make_embeddings(40, 8)
    for gamma in (4.0, 4.5, 5.0, math.inf):  # the second makes the compiler generalise
        torch.testing.assert_close(compiled(z, gamma), step(z, gamma))


Step = Callable[[Tensor, float], Tensor]


def paced(**options: Any) -> Step:
    loss, labels = SelfPacedContrastiveLoss(**options), make_labels(12, 3)
    names = {"fine": labels, "coarse": labels // 2}
    lambdas = {"fine": 2.0, "coarse": 1.0}
    return lambda z, x: loss(z, names, {"fine": x, "coarse": 2 * x}, lambdas).loss


def paced_with_a_bank() -> Step:
    loss, labels, bank = SelfPacedContrastiveLoss(), make_labels(12, 3), make_embeddings(5, 4)
    return lambda z, x: loss(z, labels, x, bank=bank, bank_labels=labels[:5]).loss


def authors(loss: Any, z: Tensor) -> Tensor:
    out: Tensor = loss(z[:6], z[6:], target=[0.0, 1.0, 2.0] * 2)
    return out


# What takes a number that changes, and the compiler: aot_eager traces what the operators see too.
NUMBERS: dict[str, tuple[Callable[[], Step], str]] = {
    "gamma": (paced, "aot_eager"),
    "bank": (paced_with_a_bank, "eager"),
    "tau": (lambda: lambda z, tau: pair_lse(z, tau, impl="chunked").sum(), "aot_eager"),
    "compat.open_clip": (lambda: lambda z, x: open_clip.ClipLoss()(z[:6], z[6:], x), "eager"),
}


SLOW = {"bank", "compat.open_clip"}


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=pytest.mark.slow if x in SLOW else ()) for x in NUMBERS]
)
def test_a_number_that_changes_every_step_compiles_twice(name: str) -> None:
    make, backend = NUMBERS[name]
    step = make()
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for number in (4.0, 4.5, 5.0):
        assert_equal_steps(*(lambda z, f=f, x=number: f(z, x) for f in (compiled, step)))
    assert counters["stats"]["unique_graphs"] == 2


# np.linspace gives such; torch.compile takes them for arrays.
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_numbers_of_numpy_compile_once(kind: Any) -> None:
    torch._dynamo.reset()
    counters.clear()
    step = paced()
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    for number in (4.0, 4.5, 5.0):
        assert_equal_steps(lambda z, x=number: compiled(z, kind(x)), lambda z, x=number: step(z, x))
    assert counters["stats"]["unique_graphs"] == 1


def two_views(loss: Any, z: Tensor) -> Tensor:
    out: Tensor = loss(z[:6], z[6:])
    return out


# A loss whose attribute changes between the steps.
LOSSES: dict[str, tuple[Any, str, Callable[[Any, Tensor], Tensor]]] = {
    "compat.spcl": (spcl.SelfPacedSupConLoss(), "eager", authors),
    "compat.monai": (monai.ContrastiveLoss(), "eager", two_views),
}


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=() if "spcl" in x else pytest.mark.slow) for x in LOSSES]
)
def test_an_attribute_that_changes_every_step_compiles_twice(name: str) -> None:
    loss, backend, step = LOSSES[name]
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(lambda z: step(loss, z), fullgraph=True, backend=backend)
    for number in (4.0, 4.5, 5.0):
        if name == "compat.spcl":
            loss.set_gamma(number)
        else:
            loss.temperature = number
        assert_equal_steps(compiled, lambda z: step(loss, z))
    assert counters["stats"]["unique_graphs"] == 2


def assert_equal_steps(*steps: Callable[[Tensor], Tensor]) -> None:
    """Assert that all have one loss and one gradient."""
    results = []
    for step in steps:
        z = make_embeddings(12, 4).requires_grad_()
        loss = step(z)
        loss.backward()
        results.append((loss.detach(), z.grad))
    torch.testing.assert_close(results[0], results[1])


# dynamic=True makes a symbol of every number, the temperature among them.
@pytest.mark.parametrize("impl", ["chunked", "auto"])
def test_dynamic_fullgraph(impl: Impl) -> None:
    loss, labels = SupConLoss(0.07, impl=impl), make_labels(12, 3)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    z = make_embeddings(12, 4)
    torch.testing.assert_close(compiled(z, labels).loss, loss(z, labels).loss)


def op_calls() -> dict[str, tuple[Any, ...]]:
    z, refs = (make_embeddings(n, 4).T.contiguous().T for n in (12, 9))  # any strides
    labels, ref_labels = make_labels(12, 3), make_labels(9, 3, seed=1)
    row, col, tau = torch.ones(12), torch.ones(9), torch.tensor(0.1)
    square, pairs = (z, None, 0.1, None), (z, refs, 0.0, tau)
    label, window = (labels, 3.0, None, None, ref_labels), (labels, 0.0, tau * 30, 1.0, None)
    plain = (labels, math.inf, None, None, None)
    return {
        "pair_lse_fwd": (*square, True, "chunked"),
        "pair_lse_bwd": (*pairs, row, col, None, row, col, False, True, "chunked"),
        "positive_pair_loss_fwd": (*pairs, row, *label, "linear", "chunked"),
        "positive_pair_loss_bwd": (row, *square, row, *window, "hard", True, False, "chunked"),
        "positive_pair_histogram": (*square, row, *plain, 0.0, tau * 90, 7, "chunked"),
    }


@pytest.mark.parametrize("name", list(op_calls()))
def test_opcheck(name: str) -> None:
    # registered without autograd: the Function around an op differentiates it
    checks = ("test_schema", "test_faketensor")
    op = getattr(torch.ops.spcl_fast, name)
    torch.library.opcheck(op, op_calls()[name], test_utils=checks)


# What the annotations of the functions come to, of every kind of operand.
@pytest.mark.parametrize(
    ("name", "schema"),
    [
        (
            "pair_lse_fwd",
            "(Tensor pairs_z, Tensor? pairs_refs, float pairs_tau, Tensor? pairs_tau_tensor,"
            " bool has_backward, str impl) -> (Tensor, Tensor, Tensor)",
        ),
        (
            "positive_pair_loss_bwd",
            "(Tensor c, Tensor pairs_z, Tensor? pairs_refs, float pairs_tau,"
            " Tensor? pairs_tau_tensor, Tensor lse, Tensor label_values, float label_gamma,"
            " Tensor? label_gamma_tensor, float? label_window, Tensor? label_ref_values, str mode,"
            " bool needs_z, bool needs_refs, str impl) -> (Tensor, Tensor)",
        ),
        (
            "positive_pair_histogram",
            "(Tensor pairs_z, Tensor? pairs_refs, float pairs_tau, Tensor? pairs_tau_tensor,"
            " Tensor lse, Tensor label_values, float label_gamma, Tensor? label_gamma_tensor,"
            " float? label_window, Tensor? label_ref_values, float upper, Tensor? upper_tensor,"
            " int bins, str impl) -> Tensor",
        ),
    ],
)
def test_schema(name: str, schema: str) -> None:
    assert str(getattr(torch.ops.spcl_fast, name).default._schema) == f"spcl_fast::{name}{schema}"
