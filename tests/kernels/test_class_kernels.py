"""Class sums in place of pairs, for weights of 1: few and many classes, short and long ones."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from typing import Any

import pytest
import torch
from pair_values import BF16, FP32, PRECISIONS
from positive_values import check

from spcl_fast import kernels, reference
from spcl_fast.kernels import _class_sums
from spcl_fast.kernels import positive_pair_loss as loss_module
from spcl_fast.kernels._bound import Bound
from spcl_fast.kernels._order import Order
from spcl_fast.kernels._similarities import PlanePairs
from spcl_fast.operands import Label, Pairs, PositivePairLoss
from spcl_fast.testing import make_clusters, make_embeddings, make_labels


@pytest.fixture(autouse=True)
def _by_class_sums_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the kernels over pairs."""
    monkeypatch.setattr(loss_module, "positive_forward_kernel", None)
    monkeypatch.setattr(loss_module, "positive_backward_kernel", None)


def unit_weights(z: torch.Tensor, labels: torch.Tensor, **references: Any) -> None:
    check(z, labels, gamma=math.inf, **references)


# One class, longer than a block of 128 rows; two, of which one may be; some of a few rows; classes
# of one row, which have no positives; rows that are not known.
@pytest.mark.parametrize(
    ("dtype", "num_classes", "unknown"),
    [
        pytest.param(BF16, 1, 0.0, marks=pytest.mark.slow),
        (FP32, 40, 0.1),
        *(
            pytest.param(dtype, *classes, marks=pytest.mark.breadth)
            for dtype in (BF16, FP32)
            for classes in ((1, 0.0), (2, 0.1), (40, 0.1), (10**9, 0.0), (3, 1.0))
            if (dtype, classes[0]) not in ((BF16, 1), (FP32, 40))
        ),
    ],
)
def test_few_and_many_classes(
    dtype: torch.dtype, num_classes: int, unknown: float, device: str
) -> None:
    z = make_embeddings(140, 20, dtype=dtype, device=device)
    labels = make_labels(140, num_classes, unknown_share=unknown, device=device)
    unit_weights(z, labels)
    refs = make_embeddings(30, 20, dtype=dtype, device=device, seed=1)
    ref_labels = make_labels(30, num_classes, unknown_share=unknown, device=device, seed=1)
    unit_weights(z, labels, refs=refs, ref_labels=ref_labels)


# Exactly a block, one less and one more; of the rows and of the references.
@pytest.mark.breadth
@pytest.mark.parametrize("size", [127, 128, 129, 257])
def test_classes_around_a_block(size: int, device: str) -> None:
    labels = torch.zeros(size + 20, dtype=torch.int64, device=device)
    labels[::17] = 1
    labels[size:] = 2
    z = make_embeddings(len(labels), 20, device=device)
    unit_weights(z, labels)
    unit_weights(z, labels, refs=z[3:9].clone(), ref_labels=labels[3:9])
    unit_weights(z[3:9].clone(), labels[3:9], refs=z, ref_labels=labels)


def labels_of_sizes(*sizes: int, device: str) -> torch.Tensor:
    """Return labels of classes of these sizes, the first of them not known, in any order."""
    labels = torch.cat([torch.full((size,), k - 1) for k, size in enumerate(sizes)])
    shuffle = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return labels[shuffle].to(device)


# Classes that hold whole blocks of 128 columns and begin and end within others, or on their bounds;
# one within a block, and a row alone. Few rows, few columns, both sides long.
@pytest.mark.parametrize(
    ("dtype", "dim", "sizes"),
    [
        pytest.param(FP32, 20, (3, 141, 2, 260, 1), marks=pytest.mark.slow),
        pytest.param(BF16, 70, (5, 251, 128), marks=pytest.mark.breadth),
        pytest.param(FP32, 130, (0, 128, 256, 127, 1, 2), marks=pytest.mark.breadth),
    ],
)
@pytest.mark.parametrize("sides", ["square", "few rows", "few columns", "both"])
def test_block_sums(
    dtype: torch.dtype,
    dim: int,
    sizes: tuple[int, ...],
    sides: str,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_class_sums, "_FEW", 0)
    labels = labels_of_sizes(*sizes, device=device)
    z = make_embeddings(len(labels), dim, dtype=dtype, device=device)
    if sides == "square":
        unit_weights(z, labels)
        return
    rows = slice(3, 12) if sides == "few rows" else slice(None)
    cols = slice(3, 12) if sides == "few columns" else slice(None)
    refs = make_embeddings(len(labels), dim, dtype=dtype, device=device, seed=1)[cols].clone()
    unit_weights(z[rows].clone(), labels[rows], refs=refs, ref_labels=labels.flip(0)[cols].clone())


# One class: its rows are many programs', and the sums of its blocks few steps of each.
def test_a_program_does_no_more_in_a_longer_class(
    is_emulated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_emulated:
        pytest.skip("counts instructions")
    from gpucheck import emu_driver

    launch = Bound.__getitem__
    # the first program alone, in which the class begins
    monkeypatch.setattr(
        Bound,
        "__getitem__",
        lambda kernel, grid: launch(kernel, (1,) if is_of_rows(kernel) else grid),
    )

    def is_of_rows(kernel: Bound) -> bool:
        return kernel.__name__ in ("class_forward_kernel", "class_backward_kernel")

    def work(num_rows: int) -> dict[str, int]:
        z = make_embeddings(num_rows, 64, dtype=BF16)
        out = PositivePairLoss(*(torch.zeros(num_rows, dtype=x) for x in (FP32, FP32, torch.int64)))
        side = torch.zeros(3, num_rows, dtype=torch.int32)
        side[0], side[2] = torch.arange(num_rows), num_rows
        pairs, order, label = PlanePairs.of(z, None, 0.1), Order(side, side), Label(side[1])
        losses = loss_module.Losses(out.loss, out.loss, out.loss[0])
        first = len(emu_driver.LOG)
        loss_module.fill_losses(pairs, out.loss, label, order, "linear", out)
        loss_module.add_gradient(
            pairs, order, losses, losses, label, "linear", parts=z[None][:0], dz=z.clone()
        )
        found = {x["name"]: sum(x["opcodes"].values()) for x in emu_driver.LOG[first:]}
        return {name: n for name, n in found.items() if name != "class_sums_kernel"}

    short, long = work(640), work(2560)
    assert short.keys() == long.keys() == {"class_forward_kernel", "class_backward_kernel"}
    for name, instructions in long.items():
        assert instructions < 1.1 * short[name]


# Features of several steps, the last of them full and not; three planes and two.
@pytest.mark.breadth
@pytest.mark.parametrize(("dtype", "precision"), PRECISIONS[:-1])  # "medium" is "high"
@pytest.mark.parametrize("dim", [1, 128, 300])
def test_number_of_features(dtype: torch.dtype, precision: str, dim: int, device: str) -> None:
    torch.set_float32_matmul_precision(precision)
    z = make_clusters(140, dim, 9, dtype=dtype, device=device)
    labels = make_labels(140, 4, unknown_share=0.1, device=device)
    unit_weights(z, labels)
    unit_weights(z, labels, refs=z[:60].clone(), ref_labels=labels[:60])


# A class of one row among others, and one whose rows are references alone.
@pytest.mark.breadth
def test_classes_of_one_side(device: str) -> None:
    z = make_embeddings(9, 20, device=device)
    labels = torch.tensor([0, 1, 1, 1, 2, 5, 5, 9, -1], device=device)
    ref_labels = torch.tensor([3, 3, 1, 9, -1, 4], device=device)
    unit_weights(z, labels)
    unit_weights(
        z, labels, refs=make_embeddings(6, 20, device=device, seed=1), ref_labels=ref_labels
    )


# Counts are integers, for which order means nothing; nothing else is added across programs.
def test_only_the_histogram_adds_atomically() -> None:
    found = {
        name
        for _, name, _ in pkgutil.iter_modules(kernels.__path__)
        if "atomic_" in inspect.getsource(importlib.import_module(f"{kernels.__name__}.{name}"))
    }
    assert found == {"positive_pair_histogram"}


# Rows without positives have the interval [0, 0), and the first class begins at 0 too.
def test_rows_alone_after_the_first_class(device: str) -> None:
    z = make_embeddings(7, 16, device=device)
    labels = torch.tensor([4, 0, 0, 2, 1, 4, -1], device=device)
    pairs = Pairs(z, None, 0.1)
    lse = torch.full((7,), 9.0, device=device)
    out = loss_module.positive_pair_loss_fwd(pairs, lse, Label(labels), "linear")
    assert out.num_pos.tolist() == [1, 1, 1, 0, 0, 1, 0]
    truth = reference.positive_pair_loss(pairs, lse, Label(labels), "linear")
    torch.testing.assert_close(out.loss, truth.loss, rtol=1e-5, atol=1e-5)
