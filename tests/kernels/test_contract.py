"""What surrounds the kernels: public ops, half precision, autocast, compile, no waiting."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast import (
    InfoNCELoss,
    NTXentLoss,
    SelfPacedContrastiveLoss,
    pair_lse,
    positive_pair_histogram,
    positive_pair_loss,
)
from spcl_fast.operands import Pairs
from spcl_fast.ops import Impl, Label, contrastive_rows
from spcl_fast.pacing import quantile_gamma
from spcl_fast.reference.positive_pair_loss import positive_mask
from spcl_fast.testing import (
    assert_within_budget,
    make_embeddings,
    make_labels,
    similarity_rounding,
)

INTERPRETED = pytest.mark.interpreted
Forbid = Callable[[], AbstractContextManager[Any]]


def run_ops(z: Tensor, refs: Tensor | None, labels: Tensor, impl: Impl) -> dict[str, Tensor]:
    """Return what both ops give for positives at most a label apart, and every gradient."""
    wide = torch.promote_types(z.dtype, torch.float32)
    leaves = {"dz": z.clone().requires_grad_()}
    leaves["dtau"] = torch.tensor(0.1, dtype=wide, device=z.device, requires_grad=True)
    if refs is None:
        lse = pair_lse(leaves["dz"], leaves["dtau"], impl=impl)
        towers: dict[str, Any] = {}
    else:
        leaves["drefs"] = refs.clone().requires_grad_()
        lse, _ = pair_lse(leaves["dz"], leaves["dtau"], refs=leaves["drefs"], impl=impl)
        towers = {"refs": leaves["drefs"], "ref_labels": labels[: len(refs)]}
    out = positive_pair_loss(
        *(leaves["dz"], lse, labels),
        tau=leaves["dtau"],
        gamma=7.0,
        mode="linear",
        window=1,
        impl=impl,
        **towers,
    )
    weights = torch.linspace(1, 2, len(z), dtype=wide, device=z.device)
    (weights * out.loss).sum().backward()
    results = {"lse": lse.detach(), **out._asdict()}
    results["loss"] = out.loss.detach()
    return results | {name: leaf.grad for name, leaf in leaves.items()}


def rounding_of_dtau(z: Tensor, refs: Tensor | None, labels: Tensor) -> float:
    """Return what the rounding of similarities explains of the dtau of `run_ops`.

    dtau is a sum of h_ij s_ij / tau with terms of either sign, h_ij = c_i (w_ij - sum(w_i) p_ij).
    Similarities move the h_ij of a row by as much as they are off, relative to weights of 1; rows
    add up like numbers of either sign.
    """
    others = z if refs is None else refs
    ref_labels = None if refs is None else labels[: len(refs)]
    sim = z @ others.T / 0.1
    positive = positive_mask(labels, ref_labels, 1)
    p = (sim.fill_diagonal_(-math.inf) if refs is None else sim).softmax(1)
    sizes = sim.abs().where(sim.isfinite(), 0)
    share = positive / positive.sum(1, keepdim=True).clamp_min(1)  # bounds c_i w_ij
    rows = ((share + share.sum(1, keepdim=True) * p) * sizes).sum(1)
    rows = rows * torch.linspace(1, 2, len(z), dtype=z.dtype, device=z.device)
    return similarity_rounding(10) * float(rows.norm()) / 0.1


# Two ragged tiles an axis in the interpreter; a number of features that is no power of two.
@pytest.mark.parametrize(
    "dtype",
    [torch.float32, *(pytest.param(x, marks=INTERPRETED) for x in (torch.float16, torch.bfloat16))],
)
@pytest.mark.parametrize("num_refs", [None, 37])
def test_ops_equal_the_reference(dtype: torch.dtype, num_refs: int | None, device: str) -> None:
    z = make_embeddings(50, 20, dtype=dtype, device=device)
    refs = None
    if num_refs is not None:
        refs = make_embeddings(num_refs, 20, dtype=dtype, device=device, seed=1)
    labels = make_labels(50, 6, unknown_share=0.1, device=device)
    actual = run_ops(z, refs, labels, "triton")
    eager = run_ops(z, refs, labels, "reference")
    wide = None if refs is None else refs.double()
    truth = run_ops(z.double(), wide, labels, "reference")
    assert 0.1 < float(truth["weight_sum"].sum() / truth["num_pos"].sum()) < 0.9
    assert actual["lse"].dtype == actual["loss"].dtype == torch.float32
    assert actual["dz"].dtype == dtype
    for name, value in actual.items():
        if name == "dtau":  # a sum of terms of either sign: measured against their sizes
            sizes = [(z.double() * truth["dz"]).abs().sum()]
            sizes += [] if wide is None else [(wide * truth["drefs"]).abs().sum()]
            allowed = torch.finfo(dtype).eps * float(sum(sizes)) / 0.1
            allowed += rounding_of_dtau(z.double(), wide, labels)
            assert abs(float(value - truth[name])) <= allowed
        else:
            rounding = similarity_rounding(10) if name in ("lse", "loss") else 0.0
            assert_within_budget(value, truth[name], eager[name], rounding=rounding, name=name)


def run_rows(z: Tensor, labels: list[Tensor], impl: Impl) -> dict[str, Tensor]:
    """Return the losses of an unpaced, a paced and a continuous label, and every gradient."""
    wide = torch.promote_types(z.dtype, torch.float32)
    z = z.clone().requires_grad_()
    tau = torch.tensor(0.1, dtype=wide, device=z.device, requires_grad=True)
    ways: list[Any] = [(math.inf, None), (7.0, None), (8.0, 0.1)]
    paced = [Label(y, *way) for y, way in zip(labels, ways, strict=True)]
    lse, rows = contrastive_rows(z, tau, paced, mode="linear", impl=impl)
    total = lse.mean() + sum((k + 1) * row.loss.mean() for k, row in enumerate(rows))
    dz, dtau = torch.autograd.grad(total, (z, tau))
    losses = {f"loss {k}": row.loss.detach() for k, row in enumerate(rows)}
    return {"lse": lse.detach(), "dz": dz, "dtau": dtau} | losses


@pytest.mark.breadth
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_several_labels_equal_the_reference(dtype: torch.dtype, device: str) -> None:
    z = make_embeddings(50, 20, dtype=dtype, device=device)
    labels = [make_labels(50, n, unknown_share=0.1, device=device) for n in (2, 6)]
    labels.append(torch.linspace(0, 1, 50, device=device))
    truth, eager = run_rows(z.double(), labels, "reference"), run_rows(z, labels, "reference")
    for name, value in run_rows(z, labels, "triton").items():
        if name == "dtau":
            size = float((z.double() * truth["dz"]).abs().sum()) / 0.1
            assert abs(float(value - truth[name])) <= torch.finfo(dtype).eps * size
        else:
            assert_within_budget(value, truth[name], eager[name], name=name)


@pytest.mark.breadth
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_kernels_get_the_rows_as_they_are(
    dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []
    for op in ("pair_lse", "positive_pair_loss"):
        module = importlib.import_module(f"spcl_fast.kernels.{op}")
        forward = getattr(module, f"{op}_fwd")

        def record(pairs: Pairs, *args: Any, forward: Any = forward, **named: Any) -> Any:
            seen.append(pairs.z.dtype)
            return forward(pairs, *args, **named)

        monkeypatch.setattr(module, f"{op}_fwd", record)
    z, labels = make_embeddings(5, 16, dtype=dtype, device=device), make_labels(5, 2, device=device)
    run_ops(z, None, labels, "triton")
    run_rows(z, [labels, labels, labels], "triton")
    assert seen == [dtype] * 6


# 30 bins between pair losses: counts may move by what rounding carries across an edge, here none.
def test_histogram_equals_the_reference(device: str) -> None:
    z, labels = make_embeddings(50, 20, device=device), make_labels(50, 6, device=device)
    lse = pair_lse(z.double(), 0.1)
    options: dict[str, Any] = {"tau": 0.1, "upper": 12.0, "bins": 30}
    actual = positive_pair_histogram(z, lse, labels, impl="triton", **options)
    truth = positive_pair_histogram(z.double(), lse, labels, impl="reference", **options)
    assert torch.equal(actual, truth)


@pytest.mark.breadth
def test_autocast_leaves_the_dtype_of_the_rows(device: str) -> None:
    z, labels = make_embeddings(50, 20, device=device), make_labels(50, 6, device=device)
    for dtype in (torch.float32, torch.float16):
        plain = run_ops(z.to(dtype), None, labels, "triton")
        with torch.autocast(device, torch.bfloat16):
            inside = run_ops(z.to(dtype), None, labels, "triton")
        for name, value in plain.items():
            torch.testing.assert_close(inside[name], value, rtol=0, atol=0, msg=name)


def several_labels(device: str) -> Callable[[Tensor], Tensor]:
    labels = {"position": make_labels(40, 5, device=device)}
    labels["time"] = torch.linspace(0, 1, 40, device=device)
    gamma = {"position": math.inf, "time": 5.0}
    loss = SelfPacedContrastiveLoss(window={"time": 0.1}, learnable_tau=True, impl="triton")
    loss = loss.to(device)
    return lambda z: loss(z, labels, gamma).loss


def quantile(device: str) -> Callable[[Tensor], Tensor]:
    labels = make_labels(40, 5, unknown_share=0.1, device=device)
    loss = SelfPacedContrastiveLoss(0.1, impl="triton")

    def run(z: Tensor) -> Tensor:
        lse = pair_lse(z, 0.1, impl="triton")
        gamma = quantile_gamma(z, lse, labels, tau=0.1, share=0.5, impl="triton")
        return loss(z, labels, gamma).loss  # type: ignore[no-any-return]

    return run


def views(_device: str) -> Callable[[Tensor], Tensor]:
    loss = NTXentLoss(impl="triton")
    return lambda z: loss(z[:20], z[20:]).loss


def towers(device: str) -> Callable[[Tensor], Tensor]:
    loss = InfoNCELoss(learnable_tau=True, impl="triton").to(device)
    return lambda z: loss(z[:15], z[15:]).loss


LOSSES = [several_labels, quantile, views, towers]


def loss_and_gradient(function: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.clone().requires_grad_()
    loss = function(z)
    return loss.detach(), torch.autograd.grad(loss, z)[0]


@pytest.mark.breadth
@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_fullgraph(
    make: Callable[[str], Callable[[Tensor], Tensor]], dtype: torch.dtype, device: str
) -> None:
    function, z = make(device), make_embeddings(40, 8, dtype=dtype, device=device)
    torch.compiler.reset()
    # aot_eager traces forward and backward as the default backend does, without its C++ compiler
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    actual, expected = loss_and_gradient(compiled, z), loss_and_gradient(function, z)
    torch.testing.assert_close(actual[0], expected[0])
    # compiled it is the sum of the gradients of several ops, each rounded to the dtype of z
    atol = 2 * torch.finfo(dtype).eps * expected[1].abs().max().item()
    torch.testing.assert_close(actual[1], expected[1], rtol=0, atol=atol)


@pytest.mark.breadth
@pytest.mark.usefixtures("no_host_values")
@pytest.mark.parametrize("make", LOSSES)
def test_nothing_waits_for_the_device(
    make: Callable[[str], Callable[[Tensor], Tensor]], device: str, forbid_waiting: Forbid
) -> None:
    function, z = make(device), make_embeddings(40, 8, device=device)
    expected = loss_and_gradient(function, z)
    with forbid_waiting():
        actual = loss_and_gradient(function, z)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("make", LOSSES)
def test_a_step_can_be_captured(
    make: Callable[[str], Callable[[Tensor], Tensor]], device: str
) -> None:
    if device == "cpu":
        pytest.skip("needs a CUDA device")
    function, z = make(device), make_embeddings(40, 8, device=device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        loss_and_gradient(function, z)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = loss_and_gradient(function, z)
    z.copy_(make_embeddings(40, 8, seed=1))
    graph.replay()
    torch.testing.assert_close(captured, loss_and_gradient(function, z))


def op_calls(device: str, dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    z = make_embeddings(12, 4, dtype=dtype, device=device).T.contiguous().T  # not contiguous
    refs = make_embeddings(9, 4, dtype=dtype, device=device, seed=1)
    labels = make_labels(12, 3, device=device)
    row, col = torch.full((12,), 9.0, device=device), torch.full((9,), 9.0, device=device)
    tau, gamma = torch.tensor(0.1, device=device), torch.tensor(3.0, device=device)
    square, pairs = (z, None, 0.1, None), (z, refs, 0.0, tau)
    label, window = (labels, 3.0, None, None, labels[:9]), (labels, 0.0, gamma, 1.0, None)
    plain = (labels, math.inf, None, None, None)
    return {
        "pair_lse_fwd": (*square, True, "triton"),
        "pair_lse_bwd": (*pairs, row, col, None, row, col, True, True, "triton"),
        "positive_pair_loss_fwd": (*pairs, row, *label, "linear", "triton"),
        "positive_pair_loss_bwd": (row, *square, row, *window, "hard", True, False, "triton"),
        "positive_pair_histogram": (*square, row, *plain, 0.0, gamma, 7, "triton"),
    }


# float16: everything but the gradients is float32
@pytest.mark.breadth
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", list(op_calls("cpu", torch.float32)))
def test_opcheck(name: str, dtype: torch.dtype, device: str) -> None:
    # registered without autograd: the Function around an op differentiates it
    checks = ("test_schema", "test_faketensor")
    op = getattr(torch.ops.spcl_fast, name)
    torch.library.opcheck(op, op_calls(device, dtype)[name], test_utils=checks)


@INTERPRETED
def test_double_precision_and_a_second_derivative_raise(device: str) -> None:
    with pytest.raises(TypeError, match="z must be float32, bfloat16 or float16"):
        pair_lse(torch.ones(3, 2, dtype=torch.float64, device=device), 0.1, impl="triton")
    z = make_embeddings(5, 16, device=device).requires_grad_()
    lse = pair_lse(z, 0.5, impl="triton")
    (dz,) = torch.autograd.grad(lse.sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative needs"):
        dz.sum().backward()


# Few rows take shifted sums. Of the taus, 1 / tau is rounded down, up, and not at all.
@pytest.mark.breadth
@pytest.mark.parametrize("tau", [0.1, 0.07, 0.03, 1 / 3, 0.5])
@pytest.mark.parametrize("num_rows", [1, 2, 5, 15])
def test_few_rows_at_any_temperature(num_rows: int, tau: float, device: str) -> None:
    z = make_embeddings(num_rows, 8, device=device)
    refs = make_embeddings(15, 8, seed=1, device=device)
    close: Any = {"rtol": 1e-5, "atol": similarity_rounding(1 / tau)}
    truth = pair_lse(z.double(), tau, impl="reference")
    torch.testing.assert_close(pair_lse(z, tau, impl="triton").double(), truth, **close)
    truths = pair_lse(z.double(), tau, refs=refs.double(), impl="reference")
    for lse, expected in zip(pair_lse(z, tau, refs=refs, impl="triton"), truths, strict=True):
        torch.testing.assert_close(lse.double(), expected, **close)
