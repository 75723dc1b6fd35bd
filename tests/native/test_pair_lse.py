"""`pair_lse` in C++: values and gradients against float64, reproducible, of any shape."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from spcl_fast import native, pair_lse
from spcl_fast.testing import make_embeddings

from .conftest import Results, assert_close_to_truth, compare, lse_results


# 1, 2: no pair, one pair. 15, 17: around the smallest sum of bounded powers. 143 to 145: around one
# tile. 400: five blocks, the last one ragged. D: one feature, ragged and whole vectors.
@pytest.mark.parametrize("dim", [1, 7, 33, 128])
@pytest.mark.parametrize("num_rows", [1, 2, 15, 17, 67, 143, 144, 145, 400])
@pytest.mark.parametrize("mib", [0, 256])
def test_equals_float64(mib: int, num_rows: int, dim: int) -> None:
    native.set_tile_cache_mib(mib)

    def compute(dtype: torch.dtype, impl: str) -> Results:
        return lse_results(make_embeddings(num_rows, dim).to(dtype), 0.1, impl)

    compare(compute, 0.1, factor=3)


# Blocks of 144 rows, the last one ragged; 3500 and 3600 rows: 25 blocks, in groups of two by two.
@pytest.mark.parametrize(("num_rows", "num_refs"), [(1600, None), (3500, None), (3500, 3600)])
def test_larger_blocks(num_rows: int, num_refs: int | None) -> None:
    native.set_tile_cache_mib(16)  # of some tiles

    def compute(dtype: torch.dtype, impl: str) -> Results:
        z = make_embeddings(num_rows, 5).to(dtype)
        refs = None if num_refs is None else make_embeddings(num_refs, 5, seed=1).to(dtype)
        return lse_results(z, 0.1, impl, refs)

    compare(compute, 0.1)


# Fewer rows than references and the reverse, one of either, several blocks of both.
@pytest.mark.parametrize(
    ("num_rows", "num_refs"),
    [(1, 1), (1, 300), (300, 1), (60, 700), (145, 144), (700, 60), (400, 450)],
)
@pytest.mark.parametrize("mib", [0, 256])
def test_references(mib: int, num_rows: int, num_refs: int) -> None:
    native.set_tile_cache_mib(mib)

    def compute(dtype: torch.dtype, impl: str) -> Results:
        z, refs = make_embeddings(num_rows, 20), make_embeddings(num_refs, 20, seed=1)
        return lse_results(z.to(dtype), 0.1, impl, refs.to(dtype))

    compare(compute, 0.1, factor=3)


# tau: one-hot, the last that is bounded for unit rows, flat. Norms: from nothing to a similarity
# of 1e10 at the smallest tau. 2 rows in 3 are of the norm, the rest of unit length.
@pytest.mark.parametrize("tau", [1e-4, 0.0157, 0.07, 1e3])
@pytest.mark.parametrize("norm", [1e-6, 1.0, 7.0, 1e3])
def test_any_tau_and_norm(norm: float, tau: float) -> None:
    z = make_embeddings(250, 12)
    z[::3] *= norm
    z[1::3] *= norm

    def compute(dtype: torch.dtype, impl: str) -> Results:
        return lse_results(z.to(dtype), tau, impl)

    compare(compute, tau, factor=4)


def test_equal_rows() -> None:
    z = torch.ones(300, 16) / 4
    lse = pair_lse(z, 0.1, impl="native")
    assert lse.sub(10 + math.log(299)).abs().max() < 2e-6


def test_planes_and_strides() -> None:
    z = make_embeddings(250, 24)
    exact = lse_results(z, 0.1, "native")
    wide = torch.zeros(250, 100)[:, 3:27]
    wide.copy_(z)
    for view in (wide, z.T.contiguous().T, torch.stack([z, -z], 2)[..., 0]):
        assert not view.is_contiguous()
        results = lse_results(view, 0.1, "native")
        for key, value in results.items():
            assert torch.equal(value, exact[key]), key
    row = z[:1].expand(250, 24)
    assert torch.equal(pair_lse(row, 0.1, impl="native"), pair_lse(row.clone(), 0.1, impl="native"))


# Rows that are not finite, at the start, in the second block, and in both.
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [[0], [195], [3, 199]])
def test_rows_that_are_not_finite(value: float, where: list[int]) -> None:
    z = make_embeddings(200, 8)
    z[where, 2] = value
    refs = make_embeddings(210, 8, seed=1)
    for others in (None, refs):
        expected = lse_results(z, 0.1, "reference", others)
        actual = lse_results(z, 0.1, "native", others)
        for key in ("lse", "lse_refs"):
            if key in expected:
                torch.testing.assert_close(actual[key], expected[key], equal_nan=True)


def test_zero_rows() -> None:
    z = make_embeddings(200, 8)
    z[[0, 7, 199]] = 0
    compare(lambda dtype, impl: lse_results(z.to(dtype), 0.1, impl), 0.1, factor=3)


def test_nothing_to_compare() -> None:
    z = torch.ones(1, 3, requires_grad=True)
    lse = pair_lse(z, 0.1, impl="native")
    assert lse.tolist() == [-math.inf]
    lse.sum().backward()
    assert z.grad is not None
    assert z.grad.tolist() == [[0, 0, 0]]
    assert pair_lse(torch.zeros(0, 3), 0.1, impl="native").shape == (0,)
    rows, cols = pair_lse(torch.ones(5, 3), 0.1, refs=torch.ones(0, 3), impl="native")
    assert rows.tolist() == [-math.inf] * 5
    assert cols.shape == (0,)
    assert pair_lse(torch.ones(4, 0), 0.1, impl="native").tolist() == pytest.approx(
        [math.log(3)] * 4
    )


# Some tiles cached, some recomputed: 1 MiB holds 28 of the 36 tiles of 700 rows.
def test_the_tile_cache_changes_rounding_alone() -> None:
    z = make_embeddings(700, 16)
    results = []
    for mib in (0, 1, 256):
        native.set_tile_cache_mib(mib)
        results.append(lse_results(z, 0.1, "native"))
    for other in results[1:]:
        assert torch.equal(other["lse"], results[0]["lse"])
        torch.testing.assert_close(other["dz"], results[0]["dz"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("refs", [None, make_embeddings(450, 16, seed=1)])
def test_bitwise_reproducible(refs: Tensor | None) -> None:
    z = make_embeddings(900, 16)
    results = []
    for threads in (3, 3, 3):
        torch.set_num_threads(threads)
        results.append(lse_results(z, 0.1, "native", refs))
    torch.set_num_threads(1)
    for other in results[1:]:
        for key, value in other.items():
            assert torch.equal(value, results[0][key]), key


# Of 3500 rows one and three workers take groups of tiles, five take single ones.
@pytest.mark.parametrize("num_rows", [900, 3500])
def test_square_does_not_depend_on_the_number_of_threads(num_rows: int) -> None:
    z = make_embeddings(num_rows, 16)
    single = lse_results(z, 0.1, "native")
    for threads in (3, 5):
        torch.set_num_threads(threads)
        several = lse_results(z, 0.1, "native")
        torch.set_num_threads(1)
        assert torch.equal(single["lse"], several["lse"])
        assert torch.equal(single["dz"], several["dz"])


# Few rows against many references: more threads take the tiles in another order. 1 MiB holds 18 of
# the 56 tiles.
@pytest.mark.parametrize("mib", [1, 16])
def test_other_threads_in_the_backward(mib: int) -> None:
    native.set_tile_cache_mib(mib)

    def gradients(forward: int, backward: int) -> tuple[Tensor, ...]:
        z, refs = (make_embeddings(n, 16).requires_grad_() for n in (300, 2000))
        torch.set_num_threads(forward)
        sums = pair_lse(z, 0.1, refs=refs, impl="native")
        torch.set_num_threads(backward)
        out = torch.autograd.grad(sums, (z, refs), [x.detach() for x in sums])
        torch.set_num_threads(1)
        return out

    expected = gradients(1, 1)
    for threads in ((1, 8), (8, 1)):
        torch.testing.assert_close(gradients(*threads), expected, rtol=1e-4, atol=1e-5)


def test_workers_wait_for_each_other() -> None:
    # Three blocks: any two tiles that three workers hold at once share one.
    z = make_embeddings(280, 300)
    single = lse_results(z, 0.1, "native")
    torch.set_num_threads(3)
    several = [lse_results(z, 0.1, "native") for _ in range(30)]
    torch.set_num_threads(1)
    for other in several:
        assert torch.equal(single["lse"], other["lse"])
        assert torch.equal(single["dz"], other["dz"])


def test_a_second_backward_gives_the_same() -> None:
    z = make_embeddings(300, 8).requires_grad_()
    total = pair_lse(z, 0.1, impl="native").sum()
    (first,) = torch.autograd.grad(total, z, retain_graph=True)
    (second,) = torch.autograd.grad(total, z)
    assert torch.equal(first, second)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(
    num_rows=st.integers(1, 300),
    num_refs=st.one_of(st.none(), st.integers(1, 300)),
    dim=st.integers(1, 300),
    step=st.integers(1, 3),
    tau=st.sampled_from([0.01, 0.1, 5.0]),
)
def test_any_shape(num_rows: int, num_refs: int | None, dim: int, step: int, tau: float) -> None:
    z = make_embeddings(num_rows, dim * step)[:, ::step]
    refs = None if num_refs is None else make_embeddings(num_refs, dim, seed=1)

    def compute(dtype: torch.dtype, impl: str) -> Results:
        return lse_results(z.to(dtype), tau, impl, None if refs is None else refs.to(dtype))

    assert_close_to_truth(compute, tau)
