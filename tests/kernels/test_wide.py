"""Rows of more features than a program holds: `pair_lse` and the public ops against float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pair_values import BF16, FP16, FP32, PRECISIONS, Values, by_kernels, by_reference, upstream
from pair_values import check as check_pairs
from torch import Tensor

from spcl_fast import pair_lse, positive_pair_loss
from spcl_fast.kernels import _wide_gradient as wide
from spcl_fast.kernels import pair_lse as kernels
from spcl_fast.kernels._planes import planes_of
from spcl_fast.kernels._similarities import PlanePairs
from spcl_fast.operands import Lse, Pairs
from spcl_fast.testing import assert_within_budget, make_clusters, make_embeddings, make_labels

INTERPRETED = pytest.mark.interpreted


def check(z: Tensor, tau: float, refs: Tensor | None = None, **options: Any) -> None:
    assert planes_of(z).is_wide
    check_pairs(z, tau, refs, **options)


def gradients(z: Tensor, tau: float | Tensor, refs: Tensor | None, right: Values) -> Values:
    """Return dz and drefs, with the lse of `right`."""
    lse_refs = right["lse_refs"].float() if "lse_refs" in right else None
    return by_kernels(z, tau, refs, saved=Lse(right["lse"].float(), lse_refs))


# One more than fits, no multiple of a step, powers of two, many steps; several ragged tiles.
@pytest.mark.breadth
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("dim", [257, 300, 512, 1000])
def test_number_of_features(dtype: torch.dtype, dim: int, device: str) -> None:
    z = make_embeddings(67, dim, dtype=dtype, device=device)
    check(z, 0.07)
    check(z, 0.07, make_embeddings(40, dim, dtype=dtype, device=device, seed=1))


# Several tiles each way in compiled kernels; sizes that are and are not multiples of 16, which
# compile to different code; without a shift and with one. The features of compiled.py are here, and
# as there a program visits all tiles of its rows.
@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "precision"), PRECISIONS[:-1])  # "medium" is "high"
@pytest.mark.parametrize(
    ("num_rows", "num_refs", "dim", "tau"),
    [(208, None, 272, 0.005), (203, 131, 261, 0.07)],
)
def test_several_tiles(
    dtype: torch.dtype,
    precision: str,
    num_rows: int,
    num_refs: int | None,
    dim: int,
    tau: float,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_float32_matmul_precision(precision)
    if num_refs is None:
        monkeypatch.setattr(PlanePairs, "num_programs", 1)
    refs = None
    if num_refs is not None:
        refs = make_embeddings(num_refs, dim, dtype=dtype, device=device, seed=1)
    check(make_embeddings(num_rows, dim, dtype=dtype, device=device), tau, refs)


@pytest.mark.breadth
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
# One row, two, around a tile, several tiles.
@pytest.mark.parametrize("num_rows", [1, 2, 16, 31, 33, 130])
def test_number_of_rows(dtype: torch.dtype, num_rows: int, device: str) -> None:
    z = make_embeddings(num_rows, 260, dtype=dtype, device=device)
    refs = make_embeddings(33, 260, dtype=dtype, device=device, seed=1)
    if num_rows > 1:  # one row has nothing to compare
        check(z, 0.1)
    check(z, 0.1, refs)
    check(refs, 0.1, z)


# Rows of more than 128 features, of three planes, are wide too.
@pytest.mark.breadth
def test_rows_that_are_wide_at_the_highest_precision_alone(device: str) -> None:
    z = make_embeddings(67, 200, device=device)
    assert planes_of(z).is_wide
    check(z, 0.07)
    torch.set_float32_matmul_precision("high")
    assert not planes_of(z).is_wide
    check_pairs(z, 0.07)


# Similarities up to 1e-9, 200, 13,000, 1e6: without a shift, and where few terms are left with one.
@pytest.mark.parametrize(("dtype", "precision"), PRECISIONS[:-1])  # "medium" is "high"
@pytest.mark.parametrize(
    ("norm", "tau"),
    [
        pytest.param(1e-3, 10.0, marks=pytest.mark.breadth),
        pytest.param(1.0, 0.005, marks=pytest.mark.breadth),
        pytest.param(30.0, 0.07, marks=INTERPRETED),
        pytest.param(1e3, 1.0, marks=pytest.mark.breadth),
    ],
)
def test_any_temperature_and_norm(
    dtype: torch.dtype, precision: str, norm: float, tau: float, device: str
) -> None:
    torch.set_float32_matmul_precision(precision)
    how: Any = {"norm": norm, "dtype": dtype, "device": device}
    if dtype == FP16 and norm == 1e3:
        pytest.skip("gradients overflow")
    refs = make_embeddings(40, 260, seed=1, **how)
    check(make_embeddings(67, 260, **how), tau)
    check(make_clusters(67, 260, 5, **how), tau, refs)


# Similarities up to 1.4e7 and 2e8, whose last bit is more than 1: no weight may exceed 1.
@INTERPRETED
@pytest.mark.parametrize("dtype", [BF16, FP32])  # float16 overflows
@pytest.mark.parametrize("tau", [0.07, 0.005])
def test_similarities_beyond_float32(dtype: torch.dtype, tau: float, device: str) -> None:
    z = make_embeddings(97, 260, norm=1e3, dtype=dtype, device=device)
    assert by_kernels(z, tau)["dz"].abs().max().item() < 97 * 2 * 2 * 1e3 / tau


# float16 holds 2^-24 to 2^16: what no h_ij and no scaled sum may leave.
@pytest.mark.parametrize(
    "factor", [2.0**-20, *(pytest.param(x, marks=INTERPRETED) for x in (2.0**-10, 1.0, 2.0**10))]
)
def test_gradients_of_any_size_in_float16(factor: float, device: str) -> None:
    z = make_embeddings(130, 260, norm=100.0, dtype=FP16, device=device)
    tau = 10.0 if factor < 1 else 1e4
    lse = by_reference(z, tau, None, torch.float64)["lse"].float()
    dlse = torch.linspace(-1, 2, 130, device=device)
    needs = {"needs_z": True, "needs_refs": False}
    pairs, saved = Pairs(z, None, tau), Lse(lse, None)
    plain, _ = kernels.pair_lse_bwd(pairs, saved, dlse, None, **needs)
    scaled, _ = kernels.pair_lse_bwd(pairs, saved, factor * dlse, None, **needs)
    assert plain is not None
    assert scaled is not None
    torch.testing.assert_close(
        scaled.float(), factor * plain.float(), rtol=2e-3, atol=2.0**-24 + 1e-6 * factor
    )


# One row is everybody's neighbour: h_ij of its column add up to N times their bound.
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [pytest.param(BF16, marks=INTERPRETED), FP16])
def test_a_sum_beyond_the_range_of_float16(dtype: torch.dtype, device: str) -> None:
    z = make_embeddings(150, 260, norm=0.01, dtype=dtype, device=device)
    z[0] = z.float().mean(0) * 40000
    z[1:] += z[0] / 2
    check(z, 0.05)
    check(z, 0.05, z[:140].clone())


@pytest.mark.breadth
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("tau", [0.07, 0.005])  # without a shift, with one
def test_panels_give_the_same(
    dtype: torch.dtype, tau: float, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = make_embeddings(130, 257, dtype=dtype, device=device)
    refs = make_embeddings(141, 257, dtype=dtype, device=device, seed=1)
    monkeypatch.setattr(PlanePairs, "part_bytes", lambda _pairs: 0)
    monkeypatch.setattr(wide, "_PANEL_PAIRS", 0)
    monkeypatch.setattr(wide, "_PRODUCT_PROGRAMS", 17)
    check(z, tau)
    check(z, tau, refs)


LAYOUTS: dict[str, Any] = {
    "columns": lambda z: z.T.contiguous().T,
    "every other": lambda z: torch.stack([z, z + 1], 1).flatten(0, 1)[::2],
    "part of a row": lambda z: torch.cat([z + 1, z, z + 2], 1)[:, z.shape[1] : 2 * z.shape[1]],
    "expanded rows": lambda z: z[:1].expand(z.shape),
    "expanded features": lambda z: z[:, :1].expand(z.shape),
}


@pytest.mark.breadth
@pytest.mark.parametrize("dtype", [FP16, FP32])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str, dtype: torch.dtype, device: str) -> None:
    z, refs = (make_embeddings(n, 260, dtype=dtype, device=device, seed=n) for n in (67, 50))
    view, refs_view = LAYOUTS[layout](z), LAYOUTS[layout](refs)
    for others in (None, refs_view):
        plain = None if others is None else others.clone()
        right = by_reference(view, 0.1, others, torch.float64)
        actual = gradients(view, 0.1, others, right)
        expected = gradients(view.clone(), 0.1, plain, right)
        for name, value in actual.items():
            # PyTorch may add up the products of another layout in another order
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)
            assert value.is_contiguous()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [FP16, FP32])
@pytest.mark.parametrize(
    "value", [math.nan, *(pytest.param(x, marks=INTERPRETED) for x in (math.inf, -math.inf))]
)
def test_rows_that_are_not_finite(value: float, dtype: torch.dtype, device: str) -> None:
    z = make_embeddings(67, 260, dtype=dtype, device=device)
    refs = make_embeddings(50, 260, dtype=dtype, device=device, seed=1)
    z[1, 2] = value
    for others in (None, refs):
        right = by_reference(z, 0.1, others, FP32)
        for name, gradient in gradients(z, 0.1, others, right).items():
            assert torch.equal(gradient.isnan(), right[name].isnan()), name


def test_nothing_to_compare(device: str) -> None:
    one, none = torch.ones(1, 300, device=device), torch.ones(0, 300, device=device)
    for z, refs in ((one, None), (none, None), (one, none), (none, one)):
        right = by_reference(z, 0.1, refs, FP32)
        for name, gradient in gradients(z, 0.1, refs, right).items():
            assert torch.equal(gradient, torch.zeros_like(right[name])), name


@INTERPRETED
def test_gradients_that_are_not_needed(device: str) -> None:
    z, refs = (make_embeddings(n, 260, device=device, seed=n) for n in (40, 50))
    right = by_reference(z, 0.1, refs, FP32)
    both = gradients(z, 0.1, refs, right)
    lse = Lse(right["lse"], right["lse_refs"])
    given: Any = (Pairs(z, refs, 0.1), lse, *upstream(z, refs))
    only_z = kernels.pair_lse_bwd(*given, needs_z=True, needs_refs=False)
    only_refs = kernels.pair_lse_bwd(*given, needs_z=False, needs_refs=True)
    assert only_z[1] is None
    assert only_refs[0] is None
    torch.testing.assert_close(only_z[0], both["dz"], rtol=0, atol=0)
    torch.testing.assert_close(only_refs[1], both["drefs"], rtol=0, atol=0)
    assert kernels.pair_lse_bwd(*given, needs_z=False, needs_refs=False) == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [FP16, pytest.param(FP32, marks=pytest.mark.breadth)])
def test_tau_may_be_a_tensor(dtype: torch.dtype, device: str) -> None:
    z = make_embeddings(67, 260, dtype=dtype, device=device)
    right = by_reference(z, 0.25, None, torch.float64)
    by_number = gradients(z, 0.25, None, right)
    by_tensor = gradients(z, torch.tensor(0.25, device=device), None, right)
    assert torch.equal(by_number["dz"], by_tensor["dz"])


def by_ops(
    z: Tensor, refs: Tensor | None, labels: Tensor, gamma: float, impl: Any
) -> dict[str, Tensor]:
    """Return what both public ops give, and the gradients."""
    z = z.clone().requires_grad_()
    refs = None if refs is None else refs.clone().requires_grad_()
    lse: Any = pair_lse(z, 0.07, refs=refs, impl=impl)
    others: dict[str, Any] = {}
    if refs is not None:
        others = {"refs": refs, "ref_labels": labels[: len(refs)]}
    own = lse if refs is None else lse[0]
    out = positive_pair_loss(
        z, own, labels, tau=0.07, gamma=gamma, mode="linear", impl=impl, **others
    )
    total = (torch.linspace(1, 2, len(z), device=z.device) * out.loss).sum()
    if refs is not None:
        total = total + lse[1].sum()
    total.backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    results = {"lse": own.detach(), "loss": out.loss.detach(), "dz": z.grad}
    if refs is not None:
        assert refs.grad is not None
        results["drefs"] = refs.grad
    return results


# Self-paced weights and class sums; half precision too. 401 is no multiple of a step. Of rows alone
# test_several_tiles and test_positive_pair_loss.py have the compiled code.
@pytest.mark.parametrize("num_refs", [pytest.param(0, marks=INTERPRETED), 40])
@pytest.mark.parametrize(
    "dtype", [*(pytest.param(x, marks=INTERPRETED) for x in (BF16, FP16)), FP32]
)
@pytest.mark.parametrize(
    ("dim", "gamma"),
    [(320, 7.0), *(pytest.param(401, x, marks=pytest.mark.breadth) for x in (7.0, math.inf))],
)
def test_public_ops(dtype: torch.dtype, dim: int, gamma: float, num_refs: int, device: str) -> None:
    z = make_embeddings(67, dim, dtype=dtype, device=device)
    labels = make_labels(67, 6, unknown_share=0.1, device=device)
    refs, wide = None, None
    if num_refs:
        refs = make_embeddings(num_refs, dim, dtype=dtype, device=device, seed=1)
        wide = refs.double()
    actual = by_ops(z, refs, labels, gamma, "triton")
    eager = by_ops(z, refs, labels, gamma, "reference")
    truth = by_ops(z.double(), wide, labels, gamma, "reference")
    for name, value in actual.items():
        assert_within_budget(value, truth[name], eager[name], name=name)
