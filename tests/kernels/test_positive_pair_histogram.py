"""`positive_pair_histogram` of the kernels against the reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast import reference
from spcl_fast.kernels.positive_pair_histogram import positive_pair_histogram
from spcl_fast.operands import Label, Pairs
from spcl_fast.testing import make_embeddings, make_labels

INTERPRETED = pytest.mark.interpreted


def on_a_grid(num_rows: int, dim: int, dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    """Return rows of small integers: every product and every loss is exact, some on a border."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randint(-3, 4, (num_rows, dim), generator=generator)
    return z.to(device=device, dtype=dtype)


def counts_by(op: Any, z: Tensor, lse: Tensor, labels: Tensor, **how: Any) -> Tensor:
    """Return what an implementation of the op counts."""
    pairs = Pairs(z, how.get("refs"), how["tau"])
    label = Label(labels, window=how.get("window"), ref_values=how.get("ref_labels"))
    counts: Tensor = op(pairs, lse, label, upper=how["upper"], bins=how["bins"])
    return counts


def assert_counts(z: Tensor, labels: Tensor, **options: Any) -> None:
    lse = torch.arange(z.shape[0], device=z.device) % 7 + 8.0
    how = {"tau": 0.5, "upper": 16.0, "bins": 8} | options
    truth = counts_by(reference.positive_pair_histogram, z, lse, labels, **how)
    counts = counts_by(positive_pair_histogram, z, lse, labels, **how)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, truth)


# Ragged and full tiles; every dtype; more features than one block.
@pytest.mark.parametrize(
    ("dtype", "num_rows", "dim"),
    [
        (torch.float32, 203, 48),
        (torch.bfloat16, 130, 300),
        (torch.float32, 130, 300),
        (torch.float16, 203, 48),
        pytest.param(torch.bfloat16, 203, 48, marks=INTERPRETED),
        pytest.param(torch.float16, 130, 300, marks=INTERPRETED),
        *(
            pytest.param(dtype, 128, 16, marks=INTERPRETED)
            for dtype in (torch.float32, torch.bfloat16, torch.float16)
        ),
    ],
)
def test_square(dtype: torch.dtype, num_rows: int, dim: int, device: str) -> None:
    z = on_a_grid(num_rows, dim, dtype, device)
    assert_counts(z, make_labels(num_rows, 3, unknown_share=0.1, device=device))


# Counted by a program and directly; a power of two and not; one bin.
@pytest.mark.parametrize(
    "bins", [1, *(pytest.param(x, marks=INTERPRETED) for x in (8, 100)), 4096, 5000]
)
def test_bins(bins: int, device: str) -> None:
    labels = make_labels(150, 3, device=device)
    assert_counts(on_a_grid(150, 16, torch.float32, device), labels, bins=bins)


@pytest.mark.breadth
@pytest.mark.parametrize("window", [None, 0, 2])
# More and fewer references than rows.
@pytest.mark.parametrize("num_refs", [70, 170])
def test_references(window: float | None, num_refs: int, device: str) -> None:
    refs = on_a_grid(num_refs, 24, torch.float32, device, seed=1)
    ref_labels = make_labels(num_refs, 9, unknown_share=0.1, device=device, seed=1)
    z, labels = on_a_grid(130, 24, torch.float32, device), make_labels(130, 9, device=device)
    assert_counts(z, labels, refs=refs, ref_labels=ref_labels, window=window)
    assert_counts(z, labels, window=window)


@pytest.mark.breadth
# Nothing, one row, one pair, a tile and one row more.
@pytest.mark.parametrize("num_rows", [0, 1, 2, 33])
@pytest.mark.parametrize("num_classes", [1, 1000])
def test_sizes(num_rows: int, num_classes: int, device: str) -> None:
    z = on_a_grid(num_rows, 3, torch.float32, device)
    assert_counts(z, make_labels(num_rows, num_classes, device=device))


@pytest.mark.breadth
def test_numbers_on_the_device_and_strides(device: str) -> None:
    z = on_a_grid(24, 200, torch.float32, device).T[::2]
    tau, upper = torch.tensor(0.5, device=device), torch.tensor(16.0, device=device)
    assert_counts(z, make_labels(100, 3, device=device), tau=tau, upper=upper)


# Neither NaN nor what lies outside of [0, upper] is lost.
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite(value: float, device: str) -> None:
    z = on_a_grid(100, 16, torch.float32, device)
    z[17] = value
    assert_counts(z, make_labels(100, 3, device=device))


@pytest.mark.breadth
def test_embeddings_may_differ_by_borders_only(device: str) -> None:
    z, labels = make_embeddings(200, 32, device=device), make_labels(200, 4, device=device)
    lse = torch.full((200,), 9.0, device=device)
    how: dict[str, Any] = {"tau": 0.07, "upper": 20.0, "bins": 512}
    counts = counts_by(positive_pair_histogram, z, lse, labels, **how)
    truth = counts_by(reference.positive_pair_histogram, z.double(), lse.double(), labels, **how)
    assert counts.sum() == truth.sum()
    assert (counts.cumsum(0) - truth.cumsum(0)).abs().max() <= 1
