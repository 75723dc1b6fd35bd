"""`pair_lse` in Triton: value and gradient against float64, both backward passes, any memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from spcl_fast import reference
from spcl_fast.kernels import _pair_lse_pairs
from spcl_fast.kernels import pair_lse as kernels
from spcl_fast.kernels._features import dot_precision
from spcl_fast.operands import Pairs
from spcl_fast.testing import assert_within_budget, make_embeddings, similarity_rounding

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# What torch.set_float32_matmul_precision calls ieee, tf32x3 and tf32; it means nothing to the rest.
PRECISIONS = [(BF16, "highest"), (FP16, "highest")]
PRECISIONS += [(FP32, "highest"), (FP32, "high"), (FP32, "medium")]
Values = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _default_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(params=["rows", "pairs"])
def backward(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take one of the two backward passes, whatever is expected to cost less."""
    monkeypatch.setattr(kernels, "adds_atomically", lambda _z: request.param == "pairs")


def upstream(z: Tensor, refs: Tensor | None) -> tuple[Tensor, Tensor | None]:
    dlse = torch.linspace(-1, 2, len(z), device=z.device)
    if refs is None:
        return dlse, None
    return dlse, torch.linspace(1, -2, len(refs), device=z.device)


def by_kernels(z: Tensor, tau: float | Tensor, refs: Tensor | None = None) -> Values:
    pairs = Pairs(z, refs, tau)
    lse = kernels.pair_lse_fwd(pairs, has_backward=True)
    given = (pairs, lse, *upstream(z, refs))
    dz, drefs = kernels.pair_lse_bwd(*given, needs_z=True, needs_refs=refs is not None)
    values = {"lse": lse.rows, "lse_refs": lse.refs, "dz": dz, "drefs": drefs}
    return {name: value for name, value in values.items() if value is not None}


def by_reference(z: Tensor, tau: float, refs: Tensor | None, dtype: torch.dtype) -> Values:
    z = z.to(dtype).detach().requires_grad_()
    dlse, dlse_refs = upstream(z, refs)
    values: Values
    if refs is None:
        lse = reference.pair_lse(z, tau)
        (dz,) = torch.autograd.grad(lse, z, dlse.to(lse.dtype))
        values = {"lse": lse, "dz": dz}
    else:
        refs = refs.to(dtype).detach().requires_grad_()
        both = reference.pair_lse(z, tau, refs)
        grads = [dlse.to(both[0].dtype), dlse_refs.to(both[0].dtype)]
        dz, drefs = torch.autograd.grad(both, (z, refs), grads)
        values = {"lse": both[0], "lse_refs": both[1], "dz": dz, "drefs": drefs}
    return {name: value.detach() for name, value in values.items()}


def cut_to_tf32(x: Tensor) -> Tensor:
    """Return what the tensor cores see of float32 rows: 10 bits after the point."""
    return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)


def check(z: Tensor, tau: float, refs: Tensor | None = None, *, factor: float = 2.5) -> None:
    actual, truth = by_kernels(z, tau, refs), by_reference(z, tau, refs, torch.float64)
    if z.dtype == FP32 and torch.get_float32_matmul_precision() == "medium":
        refs = None if refs is None else cut_to_tf32(refs)
        eager = by_reference(cut_to_tf32(z), tau, refs, FP32)
    else:
        eager = by_reference(z, tau, refs, z.dtype)
    assert actual.keys() == truth.keys()
    for name, value in actual.items():
        size = 1.0 if name.startswith("lse") else truth[name].abs().max().item()
        budget: Any = {"factor": factor, "rounding": similarity_rounding(1 / tau) * size}
        assert_within_budget(value, truth[name], eager[name], name=name, **budget)


# Several tiles each way with a ragged last one: sizes that are and are not multiples of 16, which
# compile to different code; more and less rows than references.
@pytest.mark.usefixtures("backward")
@pytest.mark.parametrize(("dtype", "precision"), PRECISIONS)
@pytest.mark.parametrize(
    ("num_rows", "num_refs", "dim"),
    [
        (288, None, 64),
        (203, None, 67),
        pytest.param(160, 301, 32, marks=pytest.mark.breadth),
        (270, 131, 128),
    ],
)
def test_several_tiles(
    dtype: torch.dtype,
    precision: str,
    num_rows: int,
    num_refs: int | None,
    dim: int,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_float32_matmul_precision(precision)
    if precision == "high" and dot_precision(dtype) == "tf32x3":
        monkeypatch.setattr(kernels, "adds_atomically", lambda _z: False)
    refs = None
    if num_refs is not None:
        refs = make_embeddings(num_refs, dim, dtype=dtype, device=device, seed=1)
    check(make_embeddings(num_rows, dim, dtype=dtype, device=device), 0.07, refs)


@pytest.mark.breadth
@pytest.mark.usefixtures("backward")
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
# One row, two, around the sizes of a dot and of a tile, several tiles.
@pytest.mark.parametrize("num_rows", [1, 2, 15, 16, 17, 63, 64, 67, 130, 257])
def test_number_of_rows(dtype: torch.dtype, num_rows: int, device: str) -> None:
    z = make_embeddings(num_rows, 20, dtype=dtype, device=device)
    factor = 6 if num_rows < 3 else 2.5  # the largest error of so few values is a matter of luck
    check(z, 0.1, factor=factor)
    refs = make_embeddings(33, 20, dtype=dtype, device=device, seed=1)
    check(z, 0.1, refs, factor=factor)
    check(refs, 0.1, z, factor=factor)


@pytest.mark.breadth
@pytest.mark.usefixtures("backward")
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
# Below the smallest dot, powers of two and between, the largest that one tile holds.
@pytest.mark.parametrize("dim", [1, 3, 16, 31, 64, 100, 128, 200, 256])
def test_number_of_features(dtype: torch.dtype, dim: int, device: str) -> None:
    z = make_embeddings(67, dim, dtype=dtype, device=device)
    check(z, 0.1)
    check(z, 0.1, make_embeddings(40, dim, dtype=dtype, device=device, seed=1))


@pytest.mark.breadth
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
# More features than one tile holds: a multiple of the block, and not.
@pytest.mark.parametrize("dim", [320, 401])
def test_forward_of_wide_rows(dtype: torch.dtype, dim: int, device: str) -> None:
    z = make_embeddings(97, dim, dtype=dtype, device=device)
    refs = make_embeddings(70, dim, dtype=dtype, device=device, seed=1)
    for others in (None, refs):
        lse, lse_refs, _ = kernels.pair_lse_fwd(Pairs(z, others, 0.1), has_backward=True)
        truth = by_reference(z, 0.1, others, torch.float64)
        eager = by_reference(z, 0.1, others, dtype)
        assert_within_budget(lse, truth["lse"], eager["lse"], name="lse")
        if lse_refs is not None:
            assert_within_budget(lse_refs, truth["lse_refs"], eager["lse_refs"], name="lse_refs")


# Similarities up to 1e-9, 200, 13,000: without a shift, and where few terms are left with one.
@pytest.mark.usefixtures("backward")
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize(
    ("norm", "tau"),
    [pytest.param(1e-4, 10.0, marks=pytest.mark.breadth), (1.0, 0.005), (30.0, 0.07)],
)
def test_any_temperature_and_norm(dtype: torch.dtype, norm: float, tau: float, device: str) -> None:
    z = make_embeddings(97, 32, norm=norm, dtype=dtype, device=device)
    refs = make_embeddings(130, 32, norm=norm, dtype=dtype, device=device, seed=1)
    # The reference rounds a similarity once for both passes. Here it is computed twice, and where
    # the sums of products run in another order, exp(sim - lse) shows the last bit of sim.
    factor = 100 if norm == 30.0 else 10
    check(z, tau, factor=factor)
    check(z, tau, refs, factor=factor)


# Similarities up to 1.4e7 and 2e8, whose last bit is more than 1.
@pytest.mark.usefixtures("backward")
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("tau", [0.07, 0.005])
def test_similarities_beyond_float32(dtype: torch.dtype, tau: float, device: str) -> None:
    z = make_embeddings(97, 32, norm=1e3, dtype=dtype, device=device)
    actual = by_kernels(z, tau)
    truth, eager = by_reference(z, tau, None, torch.float64), by_reference(z, tau, None, dtype)
    assert_within_budget(actual["lse"], truth["lse"], eager["lse"], factor=2.5, name="lse")
    if dtype != FP16:  # where it overflows
        bound = 97 * 2 * 2 * 1e3 / tau
        assert actual["dz"].abs().max().item() < bound


# Just inside and outside of what is summed without a shift.
@pytest.mark.breadth
@pytest.mark.parametrize("bound", [63.0, 65.0])
@pytest.mark.usefixtures("backward")
def test_on_both_sides_of_the_bound(bound: float, device: str) -> None:
    z = make_embeddings(97, 8, device=device)
    z[40:] = -z[0]  # a row of the largest similarities, and one of the smallest
    check(z, 1 / bound, factor=5)
    check(z, 1 / bound, z[:50].clone(), factor=5)


def test_two_rows_by_hand(device: str) -> None:
    z = torch.tensor([[1.0, 2.0], [3.0, -1.0]], device=device)
    pairs = Pairs(z, None, 0.25)
    lse = kernels.pair_lse_fwd(pairs, has_backward=True)
    assert lse.rows.tolist() == [4.0, 4.0]
    dlse = torch.tensor([-1.0, 2.0], device=device)
    dz, _ = kernels.pair_lse_bwd(pairs, lse, dlse, None, needs_z=True, needs_refs=False)
    assert dz is not None
    assert dz.tolist() == [[12.0, -4.0], [4.0, 8.0]]


def test_nothing_to_compare(device: str) -> None:
    one, none = torch.ones(1, 3, device=device), torch.ones(0, 3, device=device)
    assert by_kernels(one, 0.1)["lse"].tolist() == [-math.inf]
    assert by_kernels(one, 0.1)["dz"].tolist() == [[0.0] * 3]
    assert by_kernels(none, 0.1)["dz"].shape == (0, 3)
    values = by_kernels(one, 0.1, none)
    assert values["lse"].tolist() == [-math.inf]
    assert values["dz"].tolist() == [[0.0] * 3]
    assert values["drefs"].shape == (0, 3)
    assert by_kernels(none, 0.1, one)["lse_refs"].tolist() == [-math.inf]


@pytest.mark.usefixtures("backward")
def test_zero_rows(device: str) -> None:
    z = make_embeddings(67, 16, device=device)
    z[::3] = 0
    check(z, 0.1)
    check(torch.zeros_like(z), 0.1)


# One and many tiles; nothing is left to tell NaN from infinity if the infinite row is the only one.
@pytest.mark.parametrize("num_rows", [3, 20, 130])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.usefixtures("backward")
def test_rows_that_are_not_finite(num_rows: int, value: float, device: str) -> None:
    z = make_embeddings(num_rows, 16, device=device)
    refs = make_embeddings(num_rows + 5, 16, device=device, seed=1)
    z[1, 2] = value
    for others in (None, refs):
        actual, truth = by_kernels(z, 0.1, others), by_reference(z, 0.1, others, FP32)
        for name in actual:
            if name.startswith("lse"):
                torch.testing.assert_close(actual[name], truth[name], equal_nan=True)
            else:
                assert torch.equal(actual[name].isnan(), truth[name].isnan()), name


STRIDED: dict[str, Callable[[Tensor], Tensor]] = {
    "columns": lambda z: z.T.contiguous().T,
    "every other": lambda z: torch.stack([z, z + 1], 1).flatten(0, 1)[::2],
    "part of a row": lambda z: torch.cat([z + 1, z, z + 2], 1)[:, z.shape[1] : 2 * z.shape[1]],
    "expanded rows": lambda z: z[:1].expand(z.shape),
    "expanded features": lambda z: z[:, :1].expand(z.shape),
}


@pytest.mark.breadth
@pytest.mark.usefixtures("backward")
@pytest.mark.parametrize("layout", STRIDED)
def test_any_strides(layout: str, device: str) -> None:
    z, refs = (make_embeddings(n, 16, device=device, seed=n) for n in (67, 50))
    view, refs_view = STRIDED[layout](z), STRIDED[layout](refs)
    for others, plain in ((None, None), (refs_view, refs_view.clone())):
        actual, expected = by_kernels(view, 0.1, others), by_kernels(view.clone(), 0.1, plain)
        for name, value in actual.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)
            assert value.is_contiguous()


@pytest.mark.breadth
def test_rows_beyond_two_to_the_31_elements(tmp_path: Path, device: str) -> None:
    num_rows, stride = 18, 2**27
    size = num_rows * stride
    if device == "cpu":  # a file with holes: nothing but the rows takes memory
        memory = torch.from_file(str(tmp_path / "rows"), shared=True, size=size, dtype=FP16)
    else:
        memory = torch.empty(size, dtype=FP16, device=device)
    z = make_embeddings(num_rows, 16, dtype=FP16, device=device)
    view = memory.view(num_rows, stride)[:, :16]
    view.copy_(z)
    actual, expected = by_kernels(view, 0.1, z), by_kernels(z, 0.1, z)
    for name, value in actual.items():
        assert torch.equal(value, expected[name]), name


def test_tau_may_be_a_tensor(device: str) -> None:
    z = make_embeddings(67, 16, device=device)
    for refs in (None, z[:40]):
        by_number = by_kernels(z, 0.25, refs)
        by_tensor = by_kernels(z, torch.tensor(0.25, device=device), refs)
        for name, value in by_number.items():
            assert torch.equal(value, by_tensor[name]), name


@pytest.mark.breadth
@pytest.mark.parametrize("tau", [0.1, 0.005])  # without a shift, with one
def test_panels_give_the_same(tau: float, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    z, refs = (make_embeddings(n, 2, device=device, seed=n) for n in (403, 300))
    whole = by_kernels(z, tau), by_kernels(z, tau, refs)
    monkeypatch.setattr(_pair_lse_pairs, "_PART_BYTES", 0)
    monkeypatch.setattr(_pair_lse_pairs.NormedPairs, "num_programs", 7)
    for once, by_panels in zip(whole, (by_kernels(z, tau), by_kernels(z, tau, refs)), strict=True):
        for name, value in once.items():
            atol = 1e-4 * value.abs().max().item()
            torch.testing.assert_close(by_panels[name], value, rtol=1e-5, atol=atol)
    check(z, tau)
    check(z, tau, refs)


# float16 holds 2^-24 to 2^16: gradients whose h_ij would leave that range, and some that do not.
@pytest.mark.parametrize("factor", [2.0**-20, 2.0**-10, 1.0, 2.0**10])
@pytest.mark.usefixtures("backward")
def test_gradients_of_any_size_in_float16(factor: float, device: str) -> None:
    z = make_embeddings(130, 16, norm=100.0, dtype=FP16, device=device)
    tau = 10.0 if factor < 1 else 1e4
    pairs = Pairs(z, None, tau)
    lse = kernels.pair_lse_fwd(pairs, has_backward=True)
    dlse = torch.linspace(-1, 2, 130, device=device)
    args = {"needs_z": True, "needs_refs": False}
    plain, _ = kernels.pair_lse_bwd(pairs, lse, dlse, None, **args)
    scaled, _ = kernels.pair_lse_bwd(pairs, lse, factor * dlse, None, **args)
    assert plain is not None
    assert scaled is not None
    torch.testing.assert_close(
        scaled.float(), factor * plain.float(), rtol=2e-3, atol=2.0**-24 + 1e-6 * factor
    )


@pytest.mark.usefixtures("backward")
def test_gradients_that_are_not_needed(device: str) -> None:
    z, refs = make_embeddings(40, 8, device=device), make_embeddings(50, 8, device=device, seed=1)
    pairs = Pairs(z, refs, 0.1)
    given: Any = (pairs, kernels.pair_lse_fwd(pairs, has_backward=True), *upstream(z, refs))
    dz, drefs = kernels.pair_lse_bwd(*given, needs_z=True, needs_refs=True)
    only_z = kernels.pair_lse_bwd(*given, needs_z=True, needs_refs=False)
    only_refs = kernels.pair_lse_bwd(*given, needs_z=False, needs_refs=True)
    assert only_z[1] is None
    assert only_refs[0] is None
    torch.testing.assert_close(only_z[0], dz)
    torch.testing.assert_close(only_refs[1], drefs)
    assert kernels.pair_lse_bwd(*given, needs_z=False, needs_refs=False) == (None, None)


def test_deterministic_where_asked_for(device: str) -> None:
    z = make_embeddings(300, 16, device=device)
    assert torch.are_deterministic_algorithms_enabled()
    assert not kernels.adds_atomically(z)
    for refs in (None, z[:200].clone()):
        first, second = by_kernels(z, 0.07, refs), by_kernels(z, 0.07, refs)
        for name, value in first.items():
            assert torch.equal(value, second[name]), name


def test_cheaper_backward(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)
    torch.set_float32_matmul_precision("highest")
    assert not kernels.adds_atomically(make_embeddings(4, 128, dtype=FP16, device=device))
    assert kernels.adds_atomically(make_embeddings(4, 128, device=device))
    torch.set_float32_matmul_precision("high")  # has no configuration
    assert not kernels.adds_atomically(make_embeddings(4, 128, device=device))


class NoHostReads(TorchDispatchMode):
    """Raise where a value of a tensor is read on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "is_nonzero", "nonzero", "item", "equal"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("backward")
def test_reads_nothing_on_the_host(device: str) -> None:
    z, refs = make_embeddings(67, 16, device=device), make_embeddings(40, 16, device=device, seed=1)
    tau = torch.tensor(0.1, device=device)
    with NoHostReads():
        by_kernels(z, tau)
        by_kernels(z, tau, refs)
