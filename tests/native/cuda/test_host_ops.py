"""The CUDA ops on tensors of the CPU: what is launched on what, between products by PyTorch.

Panels have 128 rows at most: 260 rows take several.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast import reference
from spcl_fast.operands import Label, Pairs
from spcl_fast.testing import (
    assert_within_budget,
    make_embeddings,
    make_labels,
    similarity_rounding,
)

TAU, GAMMA = 0.07, 12.0
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Several panels with ragged ends; features above 256; both sides of a rectangle.
SIZES = {"square": (260, None, 24), "wide": (97, None, 300), "rectangle": (70, 300, 24)}


def rows(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    N, M, D = SIZES[name]
    z = make_embeddings(N, D, dtype=dtype)
    return z, None if M is None else make_embeddings(M, D, dtype=dtype, seed=1)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def upstream(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.linspace(-1, 2, size, dtype=torch.float64).to(dtype)


def leaf(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.detach().to(dtype).requires_grad_()


def expected_lse(z: Tensor, refs: Tensor | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return what the reference in `dtype` makes of the rows, with gradients of weighted sums."""
    z, refs = leaf(z, dtype), leaf(refs, dtype)  # type: ignore[assignment]
    out = reference.pair_lse(z, TAU, refs)
    parts = [out] if isinstance(out, Tensor) else list(out)
    total = torch.cat([x * upstream(len(x), x.dtype) for x in parts]).sum()
    total.backward()  # type: ignore[no-untyped-call]
    values = dict(zip(("lse", "lse_refs"), (x.detach() for x in parts), strict=False))
    gradients = {"dz": z.grad, "drefs": None if refs is None else refs.grad}
    return values | {key: x for key, x in gradients.items() if x is not None}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(SIZES))
def test_pair_lse(ops: Any, name: str, dtype: torch.dtype) -> None:
    z, refs = rows(name, dtype)
    lse, lse_refs, cache = ops.pair_lse_fwd(z, refs, scalar(TAU), 0)
    own = (z, refs, lse, lse_refs if refs is not None else None)
    dlse_refs = None if refs is None else upstream(len(refs))
    last: tuple[Any, ...] = (scalar(TAU), cache, [], [], [], True, True)
    dz, drefs = ops.pair_lse_bwd(*own, upstream(len(z)), dlse_refs, *last)
    actual = {"lse": lse, "lse_refs": lse_refs, "dz": dz, "drefs": drefs}
    truth, eager = expected_lse(z, refs, torch.float64), expected_lse(z, refs, dtype)
    assert truth.keys() == eager.keys()
    for key, value in truth.items():
        rounding = similarity_rounding(1 / TAU) if key in ("lse", "lse_refs", "loss") else 0.0
        assert_within_budget(actual[key], value, eager[key], rounding=rounding, name=key)


def expected_loss(z: Tensor, refs: Tensor | None, dtype: torch.dtype, **options: Any) -> Any:
    z, refs = leaf(z, dtype), leaf(refs, dtype)  # type: ignore[assignment]
    options["lse"] = options["lse"].to(torch.promote_types(dtype, torch.float32))
    pairs = Pairs(z, refs, TAU)
    loss, weight_sum, num_pos = reference.positive_pair_loss(pairs, **options)
    total = (loss * upstream(len(z), loss.dtype)).sum()
    total.backward()  # type: ignore[no-untyped-call]
    out = {"loss": loss.detach(), "weight_sum": weight_sum, "num_pos": num_pos, "dz": z.grad}
    return out | ({} if refs is None else {"drefs": refs.grad})


# Equal labels and windows, both weights; a gamma of inf, which on the device is like any other.
HOW = {
    "linear": ("linear", GAMMA, None),
    "hard": ("hard", GAMMA, None),
    "window": ("linear", GAMMA, 0.1),
    "unit weights": ("linear", float("inf"), None),
    "unit weights, window": ("hard", float("inf"), 0.1),
}


def labels_of(size: int, window: float | None, seed: int) -> Tensor:
    if window is None:
        return make_labels(size, 6, unknown_share=0.1, seed=seed)
    labels = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels[::9], labels[1::17] = -1, torch.nan
    return labels


def pairwise() -> list[Any]:
    """Return all sizes, terms and dtypes; any two of them also without those marked breadth."""
    cases = []
    for i, name in enumerate(SIZES):
        for j, how in enumerate(HOW):
            for k, dtype in enumerate(DTYPES):
                marks = () if (i + j + k) % len(DTYPES) == 0 else pytest.mark.breadth
                cases.append(pytest.param(name, how, dtype, marks=marks))
    return cases


@pytest.mark.parametrize(("name", "how", "dtype"), pairwise())
def test_positive_pair_loss(ops: Any, name: str, how: str, dtype: torch.dtype) -> None:
    (z, refs), (mode, gamma, window) = rows(name, dtype), HOW[how]
    labels = labels_of(len(z), window, 0)
    ref_labels = None if refs is None else labels_of(len(refs), window, 1)
    # Above every similarity but far enough from gamma for every rounding to agree.
    lse = torch.linspace(15, 24, len(z)) + 0.001
    how_much = (scalar(TAU), scalar(gamma), mode == "hard", window)
    loss, weight_sum, num_pos = ops.positive_pair_loss_fwd(
        z, lse, labels, refs, ref_labels, *how_much
    )
    c = upstream(len(z)) / num_pos.clamp_min(1)
    dz, drefs = ops.positive_pair_loss_bwd(
        c, z, lse, labels, refs, ref_labels, *how_much, True, True
    )
    actual = {"loss": loss, "weight_sum": weight_sum, "num_pos": num_pos, "dz": dz, "drefs": drefs}
    label = Label(labels, gamma, window, ref_labels)
    options: dict[str, Any] = {"lse": lse, "label": label, "mode": mode}
    truth = expected_loss(z, refs, torch.float64, **options)
    eager = expected_loss(z, refs, dtype, **options)
    for key, value in truth.items():
        rounding = similarity_rounding(1 / TAU) if key in ("lse", "lse_refs", "loss") else 0.0
        assert_within_budget(actual[key], value, eager[key], rounding=rounding, name=key)


def rows_of(ops: Any, z: Tensor, labels: list[Tensor], windows: list[float]) -> tuple[Any, ...]:
    """Return what `contrastive_rows` does forward, and the gradients that it joins."""
    gamma = [scalar(12.0), scalar(30.0), scalar(float("inf"))][: len(labels)]
    how = (windows, False)
    lse, loss, weight_sum, num_pos, order = ops.contrastive_rows_fwd(
        z, scalar(TAU), labels, gamma, *how
    )
    c = [upstream(len(z)) / 50, upstream(len(z)).flip(0) / 50, upstream(len(z)) / 90]
    gradient = (z, lse, upstream(len(z)), scalar(TAU), labels, c[: len(labels)], gamma, *how)
    return lse, list(zip(loss, weight_sum, num_pos, strict=True)), order, gradient


# The values and gradients of labels of both kinds are those of their own ops; N = 100: one panel.
@pytest.mark.parametrize(
    ("N", "dtype"), [(100, torch.bfloat16), *((150, dtype) for dtype in DTYPES)]
)
def test_labels_share_their_passes(ops: Any, N: int, dtype: torch.dtype) -> None:
    z = make_embeddings(N, 24, dtype=dtype)
    windows = [-1.0, 0.1, -1.0]
    given = [None if window < 0 else window for window in windows]
    labels = [labels_of(N, window, seed) for seed, window in enumerate(given)]
    lse, rows, order, gradient = rows_of(ops, z, labels, windows)
    assert torch.equal(lse, ops.pair_lse_fwd(z, None, scalar(TAU), 0)[0])
    own = (z, None, lse, None, upstream(N), None, scalar(TAU), torch.empty(0))
    total = ops.pair_lse_bwd(*own, [], [], [], True, False)[0].double()
    _, _, _, _, _, cs, paces, *_ = gradient
    for y, c, pace, window, row in zip(labels, cs, paces, given, rows, strict=True):
        how = (y, None, None, scalar(TAU), pace, False, window)
        for actual, expected in zip(row, ops.positive_pair_loss_fwd(z, lse, *how), strict=True):
            assert torch.equal(actual, expected)
        total += ops.positive_pair_loss_bwd(c, z, lse, *how, True, False)[0].double()
    tolerance = 4 * torch.finfo(dtype).eps * total.abs().max().item()
    joined = ops.contrastive_rows_bwd(*gradient, order)
    torch.testing.assert_close(joined.double(), total, rtol=0, atol=tolerance)
    assert torch.equal(joined, ops.contrastive_rows_bwd(*gradient, torch.empty(0)))


@pytest.mark.parametrize("name", list(SIZES))
def test_histogram(ops: Any, name: str) -> None:
    z, refs = rows(name, torch.float32)
    lse, labels = torch.linspace(15, 24, len(z)), labels_of(len(z), None, 0)
    ref_labels = None if refs is None else labels_of(len(refs), None, 1)
    counts = ops.positive_pair_histogram(
        z, lse, labels, refs, ref_labels, scalar(TAU), scalar(30), 64, None
    )
    pairs = Pairs(z.double(), None if refs is None else refs.double(), TAU)
    label = Label(labels, ref_values=ref_labels)
    truth = reference.positive_pair_histogram(pairs, lse, label, upper=30, bins=64)
    assert counts.sum() == truth.sum()
    assert (counts - truth).abs().sum() <= 4  # on the edge of a bin


def test_any_layout_and_bit_for_bit(ops: Any) -> None:
    z, _ = rows("square", torch.float32)
    lse, *_ = ops.pair_lse_fwd(z, None, scalar(TAU), 0)
    again, *_ = ops.pair_lse_fwd(z.T.contiguous().T, None, scalar(TAU).float(), 0)
    assert torch.equal(lse, ops.pair_lse_fwd(z, None, scalar(TAU), 0)[0])
    torch.testing.assert_close(again, lse, rtol=0, atol=1e-5)


@pytest.mark.parametrize("M", [None, 0, 3])
@pytest.mark.parametrize("N", [0, 1])
def test_nothing_to_compare(ops: Any, N: int, M: int | None) -> None:
    z, refs = torch.ones(N, 5), None if M is None else torch.ones(M, 5)
    lse, lse_refs, cache = ops.pair_lse_fwd(z, refs, scalar(1), 0)
    expected = 5 + torch.tensor(float(M or 0)).log()
    assert torch.equal(lse, expected.expand(N))
    assert torch.equal(lse_refs, (5 + torch.tensor(float(N)).log()).expand(M or 0))
    own = (z, refs, lse, lse_refs if M is not None else None, torch.ones(N))
    last: tuple[Any, ...] = (scalar(1), cache, [], [], [], True, True)
    dz, drefs = ops.pair_lse_bwd(*own, None if M is None else torch.ones(M), *last)
    assert dz.shape == z.shape
    assert drefs.shape == (M or 0, 5)
    if not M:
        assert not dz.any()
    labels = torch.zeros(N, dtype=torch.int64)
    ref_labels = None if M is None else torch.zeros(M, dtype=torch.int64)
    how = (scalar(1), scalar(3), False, None)
    pairs = (z, torch.full((N,), 6.0), labels, refs, ref_labels)
    loss, weight_sum, num_pos = ops.positive_pair_loss_fwd(*pairs, *how)
    assert num_pos.tolist() == [M or 0] * N
    assert weight_sum.tolist() == pytest.approx([(M or 0) * 2 / 3] * N)
    assert loss.tolist() == pytest.approx([2 / 3 if M else 0] * N)
    dz, _ = ops.positive_pair_loss_bwd(torch.ones(N), *pairs, *how, True, True)
    assert dz.shape == z.shape


# What each argument must be, and what is given instead.
WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "dtype": (
        {"z": torch.ones(4, 2).double()},
        TypeError,
        "z must be float32, bfloat16 or float16",
    ),
    "dim": ({"z": torch.ones(4)}, ValueError, r"z must be \(rows, features\)"),
    "refs": ({"refs": torch.ones(4, 3)}, ValueError, r"refs must be \(M, 2\) as z"),
    "tau": ({"tau": scalar(0)}, ValueError, "tau must be above 0, got 0"),
    "cache": ({"cache_size": 8}, ValueError, "cache_size must be 0 on a CUDA device, got 8"),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_wrong_arguments(ops: Any, what: str) -> None:
    given, error, message = WRONG[what]
    arguments: dict[str, Any] = {"z": torch.ones(4, 2), "refs": None, "tau": scalar(1)}
    arguments |= {"cache_size": 0} | given
    with pytest.raises(error, match=message):
        ops.pair_lse_fwd(*arguments.values())


def test_at_most_so_many_labels(ops: Any) -> None:
    z, labels = torch.ones(4, 2), [torch.zeros(4, dtype=torch.int64)] * 9
    with pytest.raises(ValueError, match="labels must be at most 8, got 9"):
        ops.contrastive_rows_fwd(z, scalar(1), labels, [scalar(1)] * 9, [-1.0] * 9, False)


# More columns than are counted: the labels are sorted, which tells the same ranges.
@pytest.mark.parametrize("window", [None, 0.01])
def test_sorted_labels_are_counted_labels(ops: Any, window: float | None) -> None:
    labels, ref_labels = labels_of(40, window, 0), labels_of(8300, window, 1)
    z, refs = make_embeddings(40, 3), make_embeddings(8300, 3, seed=1)
    how = (scalar(1), scalar(float("inf")), True, window)
    lse = torch.full((40,), 12.0)
    loss, _, num_pos = ops.positive_pair_loss_fwd(z, lse, labels, refs, ref_labels, *how)
    total, counts = torch.zeros(40), torch.zeros(40, dtype=torch.int64)
    for part in (slice(0, 4000), slice(4000, 8300)):
        some = ops.positive_pair_loss_fwd(z, lse, labels, refs[part], ref_labels[part], *how)
        total, counts = total + some[0] * some[2], counts + some[2]
    assert torch.equal(num_pos, counts)
    torch.testing.assert_close(loss, total / counts.clamp_min(1), rtol=1e-5, atol=1e-5)
