"""`positive_pair_loss` in C++: values and gradients against float64, for every kind of label."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from spcl_fast import pair_lse
from spcl_fast.testing import make_embeddings, make_labels

from .conftest import Results, assert_close_to_truth, compare, pair_loss_results

TAU = 0.1
compare_loosely = functools.partial(compare, factor=4)


def gap_gamma(z: Tensor, lse: Tensor, others: Tensor) -> float:
    """Return a pace in the middle of a wide gap between pair losses: no rounding crosses it."""
    losses = (lse[:, None] - z @ others.T / TAU).flatten().sort().values
    middle = losses[len(losses) // 3 : 2 * len(losses) // 3 + 1]
    if len(middle) < 2:
        return 1.0
    k = int(middle.diff().argmax())
    return max(float(middle[k] + middle[k + 1]) / 2, 1.0)


def label_cases(num_rows: int) -> dict[str, tuple[Tensor, float | None]]:
    """Return labels by what is special about them, each with its window."""
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.randperm(num_rows, generator=generator)
    position = torch.linspace(0, 1, num_rows)[shuffled]
    return {
        "a few classes, some unknown": (make_labels(num_rows, 7, unknown_share=0.2), None),
        "one class": (torch.zeros(num_rows, dtype=torch.int64), None),
        "two classes": (make_labels(num_rows, 2), None),
        "all distinct": (shuffled, None),
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


def check(
    z: Tensor,
    labels: Tensor,
    refs: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    yardstick: Callable[..., None] = compare_loosely,
    **options: Any,
) -> None:
    """Compare with the truth for a finite pace and for none."""
    wide = z.double()
    others = wide if refs is None else refs.double()
    lse = pair_lse(wide, TAU) if refs is None else pair_lse(wide, TAU, refs=others)[0]
    lse = lse.float().masked_fill(lse.isinf(), 0)
    for gamma in (gap_gamma(wide, lse, others), math.inf):

        def compute(dtype: torch.dtype, impl: str, gamma: float = gamma) -> Results:
            sides: dict[str, Any] = {}
            if refs is not None:
                sides = {"refs": refs.to(dtype), "ref_labels": ref_labels}
            return pair_loss_results(
                z.to(dtype), lse.to(dtype), labels, TAU, impl, gamma=gamma, **options, **sides
            )

        yardstick(compute, TAU)


# 1, 2: no pair, one pair. 67: one tile. 500: three blocks, ragged. The labels: see label_cases.
@pytest.mark.parametrize("name", list(label_cases(1)))
@pytest.mark.parametrize("num_rows", [1, 2, 67, 500])
@pytest.mark.parametrize("mode", ["hard", "linear"])
def test_equals_float64(mode: str, num_rows: int, name: str) -> None:
    labels, window = label_cases(num_rows)[name]
    check(make_embeddings(num_rows, 20), labels, mode=mode, window=window)


# References: none with a label of the rows, one, more and fewer than rows; several blocks of both.
@pytest.mark.parametrize(("num_rows", "num_refs"), [(67, 1), (67, 90), (230, 450), (450, 40)])
@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("num_classes", [1, 6, 500])
def test_references(num_classes: int, window: float | None, num_rows: int, num_refs: int) -> None:
    labels = make_labels(num_rows, num_classes)
    labels[::9] = -1
    refs = make_embeddings(num_refs, 20, seed=1)
    ref_labels = make_labels(num_refs, num_classes, unknown_share=0.2, seed=1)
    check(make_embeddings(num_rows, 20), labels, refs, ref_labels, mode="linear", window=window)


# Rows that are not finite reach the rows of their class, with weights and without.
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("gamma", [3.0, math.inf])
def test_rows_that_are_not_finite(gamma: float, value: float) -> None:
    z, labels = make_embeddings(300, 8), make_labels(300, 6, unknown_share=0.1)
    z[[3, 250], 2] = value
    lse = torch.full((300,), 4.0)
    options = {"gamma": gamma, "mode": "linear"}
    expected = pair_loss_results(z, lse, labels, TAU, "reference", **options)
    actual = pair_loss_results(z, lse, labels, TAU, "native", **options)
    for key in ("loss", "weight_sum", "num_pos"):
        torch.testing.assert_close(actual[key], expected[key], equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gamma", [2.0, math.inf])
def test_bitwise_reproducible(gamma: float) -> None:
    z, labels = make_embeddings(900, 16), make_labels(900, 4)
    lse = pair_lse(z, TAU)
    results = []
    for threads in (1, 3, 3):
        torch.set_num_threads(threads)
        results.append(pair_loss_results(z, lse, labels, TAU, "native", gamma=gamma, mode="linear"))
    torch.set_num_threads(1)
    for other in results[1:]:
        for key, value in other.items():
            assert torch.equal(value, results[0][key]), key


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(
    num_rows=st.integers(1, 300),
    num_refs=st.one_of(st.none(), st.integers(1, 300)),
    dim=st.integers(1, 300),
    num_classes=st.integers(1, 40),
    mode=st.sampled_from(["hard", "linear"]),
    window=st.sampled_from([None, 3]),
)
def test_any_shape(
    num_rows: int,
    num_refs: int | None,
    dim: int,
    num_classes: int,
    mode: str,
    window: float | None,
) -> None:
    z, labels = (
        make_embeddings(num_rows, dim),
        make_labels(num_rows, num_classes, unknown_share=0.1),
    )
    refs = ref_labels = None
    if num_refs is not None:
        refs = make_embeddings(num_refs, dim, seed=1)
        ref_labels = make_labels(num_refs, num_classes, unknown_share=0.1, seed=1)
    options = {"mode": mode, "window": window, "yardstick": assert_close_to_truth}
    check(z, labels, refs, ref_labels, **options)
