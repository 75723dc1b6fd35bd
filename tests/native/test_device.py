"""The native ops on the device at hand: `pytest -m gpu` runs on a GPU what runs here on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast import SelfPacedContrastiveLoss, native, pair_lse, positive_pair_histogram
from spcl_fast.ops import Impl, Label, contrastive_rows, positive_pair_loss
from spcl_fast.testing import (
    assert_within_budget,
    make_embeddings,
    make_labels,
    similarity_rounding,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
Results = dict[str, Tensor]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if request.param == "cuda" and not native.cuda_architectures():
        pytest.skip("needs an extension built with CUDA")
    return str(request.param)


@pytest.fixture
def gpu() -> str:
    if not torch.cuda.is_available() or not native.cuda_architectures():
        pytest.skip("needs a CUDA device, and an extension built with CUDA")
    return "cuda"


def run_ops(z: Tensor, refs: Tensor | None, labels: Tensor, impl: Impl, **options: Any) -> Results:
    """Return what both ops give, and the gradients."""
    leaves = {"dz": z.clone().requires_grad_()}
    towers: dict[str, Any] = {}
    if refs is None:
        lse = pair_lse(leaves["dz"], 0.1, impl=impl)
    else:
        leaves["drefs"] = refs.clone().requires_grad_()
        lse, _ = pair_lse(leaves["dz"], 0.1, refs=leaves["drefs"], impl=impl)
        towers = {"refs": leaves["drefs"], "ref_labels": labels[: len(refs)]}
    out = positive_pair_loss(leaves["dz"], lse, labels, tau=0.1, impl=impl, **options, **towers)
    weights = torch.linspace(1, 2, len(z), dtype=out.loss.dtype, device=z.device)
    (weights * out.loss).sum().backward()  # type: ignore[no-untyped-call]
    grads = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {"lse": lse.detach(), **out._asdict(), "loss": out.loss.detach(), **grads}


# Ragged and whole panels; more features than triton takes; every kind of weight and of positive.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_rows", "num_refs", "dim"), [(300, None, 300), (257, 130, 20)])
@pytest.mark.parametrize(
    ("mode", "gamma", "window"),
    [("linear", 7.0, None), ("hard", 7.0, None), ("linear", math.inf, None), ("linear", 7.0, 1)],
)
def test_equal_to_the_reference(
    dtype: torch.dtype,
    num_rows: int,
    num_refs: int | None,
    dim: int,
    mode: str,
    gamma: float,
    window: float | None,
    device: str,
) -> None:
    z = make_embeddings(num_rows, dim, dtype=dtype, device=device)
    refs = None
    if num_refs is not None:
        refs = make_embeddings(num_refs, dim, dtype=dtype, device=device, seed=1)
    labels = make_labels(num_rows, 6, unknown_share=0.1, device=device)
    options: dict[str, Any] = {"mode": mode, "gamma": gamma, "window": window}
    actual = run_ops(z, refs, labels, "native", **options)
    eager = run_ops(z, refs, labels, "reference", **options)
    wide = None if refs is None else refs.double()
    truth = run_ops(z.double(), wide, labels, "reference", **options)
    for name, value in actual.items():
        size = 1.0 if name in ("lse", "loss") else truth[name].abs().max().item()
        budget: Any = {"factor": 3, "rounding": similarity_rounding(10) * size}
        assert_within_budget(value, truth[name], eager[name], name=name, **budget)


def several_labels(device: str) -> Callable[[Tensor], Tensor]:
    labels = [
        Label(make_labels(120, n, unknown_share=0.1, device=device), gamma)
        for n, gamma in ((2, math.inf), (6, 7.0))
    ]

    def loss(z: Tensor) -> Tensor:
        lse, rows = contrastive_rows(z, 0.1, labels, mode="linear", impl="native")
        return lse.mean() + sum(row.loss.mean() for row in rows)

    return loss


def module(device: str) -> Callable[[Tensor], Tensor]:
    labels = make_labels(120, 6, unknown_share=0.1, device=device)
    loss = SelfPacedContrastiveLoss(0.1, learnable_tau=True, impl="native").to(device)
    gamma = torch.tensor(7.0, device=device)
    return lambda z: loss(z, labels, gamma).loss  # type: ignore[no-any-return]


LOSSES = [several_labels, module]


def loss_and_gradient(function: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.detach().requires_grad_()
    loss = function(z)
    return loss.detach(), torch.autograd.grad(loss, z)[0]


@pytest.mark.parametrize("make", LOSSES)
def test_every_run_gives_the_same_bits(make: Callable[[str], Any], device: str) -> None:
    function, z = make(device), make_embeddings(120, 40, device=device)
    for first, second in zip(*(loss_and_gradient(function, z) for _ in range(2)), strict=True):
        assert torch.equal(first, second)


def test_histogram_equals_the_reference(device: str) -> None:
    z, labels = make_embeddings(120, 40, device=device), make_labels(120, 6, device=device)
    lse = pair_lse(z.double(), 0.1)
    options: dict[str, Any] = {"tau": 0.1, "upper": 12.0, "bins": 30}
    actual = positive_pair_histogram(z, lse, labels, impl="native", **options)
    truth = positive_pair_histogram(z.double(), lse, labels, impl="reference", **options)
    assert (actual - truth).abs().sum() <= 2  # what rounding carries across an edge
    assert actual.sum() == truth.sum()


def test_nothing_to_compare(device: str) -> None:
    one, none = torch.ones(1, 3, device=device), torch.ones(0, 3, device=device)
    assert pair_lse(one, 0.1, impl="native").tolist() == [-math.inf]
    assert pair_lse(none, 0.1, impl="native").shape == (0,)
    lse, lse_refs = pair_lse(one, 0.1, refs=none, impl="native")
    assert (lse.tolist(), lse_refs.shape) == ([-math.inf], (0,))


@pytest.mark.gpu
@pytest.mark.parametrize("make", LOSSES)
def test_nothing_waits_for_the_device(make: Callable[[str], Any], gpu: str) -> None:
    function, z = make(gpu), make_embeddings(120, 40, device=gpu)
    loss_and_gradient(function, z)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_and_gradient(function, z)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("make", LOSSES)
def test_a_step_can_be_captured(make: Callable[[str], Any], gpu: str) -> None:
    function, z = make(gpu), make_embeddings(120, 40, device=gpu)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # not the default stream
        outside = loss_and_gradient(function, z)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = loss_and_gradient(function, z)
    graph.replay()
    torch.testing.assert_close(captured, outside)
