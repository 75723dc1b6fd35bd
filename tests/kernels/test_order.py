"""The order of labels, by counting and by sorting, against a stable sort and a dense mask."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast.kernels import _order
from spcl_fast.kernels._order import Counted, Order, order_of
from spcl_fast.kernels._planes import planes_of
from spcl_fast.reference.positive_pair_loss import positive_mask
from spcl_fast.testing import make_embeddings, make_labels

INTEGERS = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.fixture(params=["counted", "sorted"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Take one of the two ways, whatever is expected to cost less."""
    if request.param == "sorted":
        monkeypatch.setattr(_order, "MAX_COUNTED", 0)
    return str(request.param)


def sorted_rows(labels: Tensor, window: float | None) -> Tensor:
    """Return the stable order: without a window unknown labels come first, with one last."""
    if window is None:
        return labels.long().clamp_min(-1).sort(stable=True).indices
    keys = labels.double()
    return keys.masked_fill(~(keys >= 0) | keys.isinf(), math.nan).sort(stable=True).indices


def assert_side(
    side: Tensor, labels: Tensor, others: Tensor, window: float | None, num_own: int
) -> None:
    """Assert that intervals hold the positives, and with those of the first rows themselves."""
    rows, columns = sorted_rows(labels, window), sorted_rows(others, window)
    assert side.dtype == torch.int32
    assert torch.equal(side[0].long(), rows)
    mask = positive_mask(labels, others, window)[rows][:, columns]
    is_own = rows < num_own
    mask &= (mask.sum(1) > is_own.long())[:, None]  # a row alone has no interval
    place = torch.arange(len(others), device=labels.device)
    inside = (place >= side[1][:, None]) & (place < side[2][:, None])
    assert torch.equal(inside, mask)
    is_empty = ~mask.any(1)
    assert not side[1:, is_empty].any()


def check(labels: Tensor, more: Tensor, window: float | None) -> None:
    """Check rows alone, against references, and against themselves and more columns."""
    square = order_of(labels, None, window)
    assert square.rows is square.cols
    assert_side(square.rows, labels, labels, window, len(labels))
    order = order_of(labels, more, window)
    assert_side(order.rows, labels, more, window, 0)
    assert_side(order.cols, more, labels, window, 0)
    columns = torch.cat([labels, more])
    order = order_of(labels, columns, window, excludes_self=True)
    assert_side(order.rows, labels, columns, window, len(labels))
    assert_side(order.cols, columns, labels, window, len(labels))


# One launch writes planes and orders labels, of more rows than a program of either kind has.
@pytest.mark.parametrize("window", [None, 1.0])
def test_beside_the_planes(window: float | None, device: str) -> None:
    labels = make_labels(150, 5, unknown_share=0.1, device=device)
    z = make_embeddings(150, 20, device=device)
    counted = Counted.of(labels, window)
    assert counted is not None
    for actual, alone in zip(planes_of(z, None, counted), planes_of(z), strict=True):
        assert torch.equal(torch.as_tensor(actual), torch.as_tensor(alone))
    assert_side(counted.side, labels, labels, window, len(labels))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "dtype",
    # the emulators do not have the instructions that compare two of 16 bits at a time
    [pytest.param(x, marks=pytest.mark.breadth) if x.itemsize <= 2 else x for x in INTEGERS],
)
def test_equal_labels(dtype: torch.dtype, device: str) -> None:
    num_classes = 2 if dtype == torch.bool else 7
    share = 0.0 if dtype in (torch.bool, torch.uint8) else 0.2
    labels = make_labels(70, num_classes, unknown_share=share, device=device).to(dtype)
    more = make_labels(41, num_classes, unknown_share=share, seed=1, device=device).to(dtype)
    check(labels, more, None)


# Differences of tenths are rounded, so that only the exact comparison finds the ends.
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "window", [0.1, *(pytest.param(w, marks=pytest.mark.breadth) for w in (0.0, 0.3, 50.0))]
)
def test_windows(dtype: torch.dtype, window: float, device: str) -> None:
    labels, more = (0.1 * make_labels(n, 30, seed=n, device=device).double() for n in (70, 41))
    labels[::9], labels[::13], labels[5], labels[6] = math.nan, -0.5, math.inf, -math.inf
    more[::8], more[3], more[4] = -1.0, math.nan, -0.0
    check(labels.to(dtype), more.to(dtype), window)


@pytest.mark.breadth
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("window", [0.0, 1.0, 2.5])
def test_windows_of_integers(dtype: torch.dtype, window: float, device: str) -> None:
    labels, more = (make_labels(n, 30, seed=n, device=device).to(dtype) for n in (70, 41))
    if dtype in (torch.int8, torch.int16, torch.int32, torch.int64):
        labels[::9], more[::8] = -1, -7
    check(labels, more, window)


# Integers that float64 does not tell apart; the largest and the smallest.
@pytest.mark.usefixtures("way")
def test_large_integers(device: str) -> None:
    values = [2**53, 2**53 + 1, 2**53 + 2, 2**63 - 1, 2**63 - 2, 0, -1, -(2**63), 2**32, 2**32 + 1]
    labels = torch.tensor(values, device=device).repeat(4)
    check(labels, labels[7:20].clone(), None)


@pytest.mark.breadth
@pytest.mark.usefixtures("way")
# Nothing known, all alone, all equal; one row; around a block.
@pytest.mark.parametrize("num_rows", [1, 2, 33, 129])
@pytest.mark.parametrize("num_classes", [1, 5, 10**9])
def test_sizes(num_rows: int, num_classes: int, device: str) -> None:
    labels = make_labels(num_rows, num_classes, device=device)
    more = make_labels(37, num_classes, seed=1, device=device)
    check(labels, more, None)
    check(labels, more, 1.0)
    check(torch.full_like(labels, -1), more, None)
    check(torch.full_like(labels, -1), more, 1.0)


@pytest.mark.usefixtures("way")
def test_any_strides(device: str) -> None:
    labels, more = make_labels(140, 7, device=device)[::2], make_labels(41, 7, device=device)
    check(labels, more[:1].expand(20), None)
    check(labels.flip(0)[::3], labels, 1.0)


# Both ways and any number of programs give the same, the most that are counted included.
@pytest.mark.breadth
@pytest.mark.parametrize("window", [None, 2.0])
def test_both_ways_agree(
    window: float | None, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    labels = make_labels(600, 50, unknown_share=0.1, device=device)
    more = make_labels(200, 50, unknown_share=0.1, seed=1, device=device)
    calls: list[tuple[Any, ...]] = [(labels, None, window), (labels, more, window)]
    monkeypatch.setattr(_order, "MAX_COUNTED", 600)
    counted: list[Order] = [order_of(*call) for call in calls]
    monkeypatch.setattr(_order, "MAX_COUNTED", 599)
    for one, call in zip(counted, calls, strict=True):
        for side, other in zip(one, order_of(*call), strict=True):
            assert torch.equal(side, other)
