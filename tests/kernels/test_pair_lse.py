"""`pair_lse` in Triton: value and gradient against float64, any memory, any temperature."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pair_values import (
    BF16,
    FP16,
    FP32,
    PRECISIONS,
    by_kernels,
    by_reference,
    check,
    eager,
    upstream,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from spcl_fast.kernels import _similarities
from spcl_fast.kernels import pair_lse as kernels
from spcl_fast.operands import Pairs
from spcl_fast.testing import assert_within_budget, make_clusters, make_embeddings

INTERPRETED = pytest.mark.interpreted


ONE, HALF, THREE, TWO = PRECISIONS[:-1]  # planes; "medium" is "high"
BREADTH = pytest.mark.breadth
OF_TILES: list[Any] = [
    *((203, None, 50, (0.005,), *x) for x in (ONE, HALF, THREE, TWO)),
    *((288, None, 128, (0.07,), *x) for x in (HALF, ONE, TWO, THREE)),
    *((270, 131, 128, (0.07, 0.005), *x) for x in (ONE, TWO)),
    *(pytest.param(270, 131, 128, (0.07, 0.005), *x, marks=BREADTH) for x in (HALF, THREE)),
    *(pytest.param(160, 301, 32, (0.07,), *x, marks=BREADTH) for x in PRECISIONS[:-1]),
]


# Several tiles each way with a ragged last one: sizes that are and are not multiples of 16, which
# compile to different code; more and less rows than references; without a shift and with one. The
# rows of compiled.py are here, and as there a program visits all of their tiles.
@pytest.mark.slow
@pytest.mark.parametrize(("num_rows", "num_refs", "dim", "taus", "dtype", "precision"), OF_TILES)
def test_several_tiles(
    num_rows: int,
    num_refs: int | None,
    dim: int,
    taus: tuple[float, ...],
    dtype: torch.dtype,
    precision: str,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_float32_matmul_precision(precision)
    if num_rows == 288:
        monkeypatch.setattr(_similarities.PlanePairs, "num_programs", 1)
    refs = None
    if num_refs is not None:
        refs = make_embeddings(num_refs, dim, dtype=dtype, device=device, seed=1)
    for tau in taus:
        check(make_embeddings(num_rows, dim, dtype=dtype, device=device), tau, refs)


@pytest.mark.breadth
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
# One row, two, around the sizes of a dot and of a tile, several tiles.
@pytest.mark.parametrize("num_rows", [1, 2, 15, 16, 17, 63, 64, 67, 130, 257])
def test_number_of_rows(dtype: torch.dtype, num_rows: int, device: str) -> None:
    z = make_embeddings(num_rows, 20, dtype=dtype, device=device)
    factor = 6 if num_rows < 3 else 2  # the largest error of so few values is a matter of luck
    check(z, 0.1, factor=factor)
    refs = make_embeddings(33, 20, dtype=dtype, device=device, seed=1)
    check(z, 0.1, refs, factor=factor)
    check(refs, 0.1, z, factor=factor)


@pytest.mark.breadth
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
# Below the smallest dot, powers of two and between, the largest that one tile holds.
@pytest.mark.parametrize("dim", [1, 3, 16, 31, 64, 100, 128, 200, 256])
def test_number_of_features(dtype: torch.dtype, dim: int, device: str) -> None:
    z = make_embeddings(67, dim, dtype=dtype, device=device)
    check(z, 0.1)
    check(z, 0.1, make_embeddings(40, dim, dtype=dtype, device=device, seed=1))


# Similarities from 1e-9 to 2e8, whose last bit is 16: without a shift, with one, and where a single
# term is left. Random rows, and rows of clusters, whose largest similarities are many.
@pytest.mark.breadth
@pytest.mark.parametrize(("dtype", "precision"), PRECISIONS[:-1])  # "medium" is "high"
@pytest.mark.parametrize(
    ("norm", "tau"), [(1e-3, 10), (1, 0.005), (1, 0.07), (30, 0.07), (1e3, 10), (1e3, 0.005)]
)
def test_any_temperature_and_norm(
    dtype: torch.dtype, precision: str, norm: float, tau: float, device: str
) -> None:
    torch.set_float32_matmul_precision(precision)
    how: Any = {"norm": norm, "dtype": dtype, "device": device}
    refs = make_embeddings(70, 32, seed=1, **how)
    for z, others in (
        (make_embeddings(97, 32, **how), refs),
        (make_clusters(97, 32, 5, **how), None),
    ):
        if dtype == FP16 and norm**2 / tau > 2**14:  # a gradient would overflow
            check_lse(z, tau, others)
        else:
            check(z, tau, others)


def check_lse(z: Tensor, tau: float, refs: Tensor | None) -> None:
    lse = kernels.pair_lse_fwd(Pairs(z, refs, tau), has_backward=True)
    truth, other = by_reference(z, tau, refs, torch.float64), eager(z, tau, refs)
    assert_within_budget(lse.rows, truth["lse"], other["lse"], name="lse")
    if lse.refs is not None:
        assert_within_budget(lse.refs, truth["lse_refs"], other["lse_refs"], name="lse_refs")


# Of few pairs: a shifted sum, and the largest that is not.
@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize(
    ("norm", "tau"),
    [
        pytest.param(1.0, 0.005, marks=pytest.mark.breadth),
        pytest.param(30.0, 0.07, marks=INTERPRETED),
    ],
)
def test_a_shifted_sum(dtype: torch.dtype, norm: float, tau: float, device: str) -> None:
    z = make_embeddings(97, 32, norm=norm, dtype=dtype, device=device)
    check(z, tau)
    check(z, tau, make_embeddings(130, 32, norm=norm, dtype=dtype, device=device, seed=1))


# No weight exceeds 1, whatever similarities of up to 2e8 are rounded to.
@INTERPRETED
@pytest.mark.parametrize("dtype", [BF16, FP32])  # float16 overflows
@pytest.mark.parametrize("tau", [0.07, 0.005])
def test_similarities_beyond_float32(dtype: torch.dtype, tau: float, device: str) -> None:
    z = make_embeddings(97, 32, norm=1e3, dtype=dtype, device=device)
    assert by_kernels(z, tau)["dz"].abs().max().item() < 97 * 2 * 2 * 1e3 / tau


# Every term is 2^k, of a scale that is 1, and every sum 49 2^k: what is left is the logarithm.
def test_the_logarithm_of_a_sum_is_rounded_once(device: str) -> None:
    exponents = torch.arange(-40.0, 41.0, device=device)
    z = torch.stack([exponents, torch.zeros_like(exponents)], 1)
    refs = torch.tensor([[1.0, 0.0]], device=device).expand(49, 2)
    tau = torch.tensor(math.log2(math.e), device=device)
    lse = kernels.pair_lse_fwd(Pairs(z, refs, tau), has_backward=False).rows
    truth = exponents.double() * math.log(2) + math.log(49)
    last_bit = torch.nextafter(lse.abs(), lse.new_tensor(math.inf)) - lse.abs()
    # More than half of the last bit by what a GPU's log2 of a number from 1 to 2 may be off.
    wrong = (lse.double() - truth).abs()
    assert (wrong <= 0.51 * last_bit + 2.0**-22).all(), (wrong / last_bit).max()


# Just inside and outside of what is summed without a shift.
@pytest.mark.breadth
@pytest.mark.parametrize("bound", [63.0, 65.0])
def test_on_both_sides_of_the_bound(bound: float, device: str) -> None:
    z = make_embeddings(97, 8, device=device)
    z[40:] = -z[0]  # a row of the largest similarities, and one of the smallest
    check(z, 1 / bound)
    check(z, 1 / bound, z[:50].clone())


@INTERPRETED
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
    one, none = (torch.ones(n, 3, dtype=BF16, device=device) for n in (1, 0))
    assert by_kernels(one, 0.1)["lse"].tolist() == [-math.inf]
    assert by_kernels(one, 0.1)["dz"].tolist() == [[0.0] * 3]
    assert by_kernels(none, 0.1)["dz"].shape == (0, 3)
    values = by_kernels(one, 0.1, none)
    assert values["lse"].tolist() == [-math.inf]
    assert values["dz"].tolist() == [[0.0] * 3]
    assert values["drefs"].shape == (0, 3)
    assert by_kernels(none, 0.1, one)["lse_refs"].tolist() == [-math.inf]


def test_zero_rows(device: str) -> None:
    z = make_embeddings(67, 20, device=device)
    z[::3] = 0
    check(z, 0.1)
    check(torch.zeros_like(z), 0.1)


# One and many tiles; nothing is left to tell NaN from infinity if the infinite row is the only one.
@pytest.mark.parametrize("num_rows", [*(pytest.param(n, marks=INTERPRETED) for n in (3, 20)), 101])
@pytest.mark.parametrize("value", [math.nan, math.inf, pytest.param(-math.inf, marks=INTERPRETED)])
def test_rows_that_are_not_finite(num_rows: int, value: float, device: str) -> None:
    z = make_embeddings(num_rows, 20, device=device)
    refs = make_embeddings(num_rows + 5, 20, device=device, seed=1)
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


# Compiled, the ops of test_contract.py read it from memory.
@INTERPRETED
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
    monkeypatch.setattr(_similarities, "_PART_BYTES", 0)
    monkeypatch.setattr(_similarities.PlanePairs, "num_programs", 7)
    for once, by_panels in zip(whole, (by_kernels(z, tau), by_kernels(z, tau, refs)), strict=True):
        for name, value in once.items():
            atol = 1e-4 * value.abs().max().item()
            torch.testing.assert_close(by_panels[name], value, rtol=1e-5, atol=atol)
    check(z, tau)
    check(z, tau, refs)


# float16 holds 2^-24 to 2^16: gradients whose h_ij would leave that range, and some that do not.
@pytest.mark.parametrize(
    "factor", [2.0**-20, *(pytest.param(x, marks=INTERPRETED) for x in (2.0**-10, 1.0, 2.0**10))]
)
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


@INTERPRETED
def test_gradients_that_are_not_needed(device: str) -> None:
    z, refs = (make_embeddings(n, 16, device=device, seed=n) for n in (40, 50))
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


# Whether or not somebody asked for deterministic algorithms; more than one program a block. It is
# for GPUs: an emulator has one schedule, as the interpreter has.
@INTERPRETED
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [BF16, pytest.param(FP32, marks=pytest.mark.breadth)])
def test_bits_repeat(dtype: torch.dtype, device: str) -> None:
    z = make_embeddings(130 if device == "cpu" else 300, 16, dtype=dtype, device=device)
    torch.use_deterministic_algorithms(False)
    for refs in (None, z[:100].clone()):
        first, second = by_kernels(z, 0.07, refs), by_kernels(z, 0.07, refs)
        for name, value in first.items():
            assert torch.equal(value, second[name]), name


class NoHostReads(TorchDispatchMode):
    """Raise where a value of a tensor is read on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "is_nonzero", "nonzero", "item", "equal"), name
        return func(*args, **(kwargs or {}))


@INTERPRETED
def test_reads_nothing_on_the_host(device: str) -> None:
    z, refs = make_embeddings(67, 16, device=device), make_embeddings(40, 16, device=device, seed=1)
    tau = torch.tensor(0.1, device=device)
    with NoHostReads():
        by_kernels(z, tau)
        by_kernels(z, tau, refs)
