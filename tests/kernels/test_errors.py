"""Errors of the kernels against float64: at most twice those of eager PyTorch in the same dtype.

Those that benchmarks/plane_errors.py found for many kinds of batches, and those of one kind now.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spcl_fast import pair_lse, positive_pair_loss
from spcl_fast.testing import make_clusters

REPOSITORY = Path(__file__).resolve().parents[2]
FACTOR = 2


def plane_errors() -> Any:
    """Import the benchmark from the repository, wherever the tests run."""
    sys.path.insert(0, str(REPOSITORY))
    try:
        return importlib.import_module("benchmarks.plane_errors")
    finally:
        sys.path.remove(str(REPOSITORY))


def excesses(row: dict[str, Any]) -> dict[str, float]:
    """Return the errors of the kernels over those of eager PyTorch, where they are too large."""
    ratios = {name: row["kernels"][name] / row["eager"][name] for name in row["kernels"]}
    assert len(ratios) == 3
    return {name: ratio for name, ratio in ratios.items() if not ratio <= FACTOR}


def test_errors_that_were_measured() -> None:
    benchmark = plane_errors()
    result = json.loads(benchmark.RESULT.read_text(encoding="utf-8"))
    assert result["draws"] == benchmark.DRAWS
    kinds = [(x["dtype"], x["precision"], x["tau"], x["norm"], x["data"]) for x in result["rows"]]
    assert kinds == [
        (str(dtype).removeprefix("torch."), precision, *batch)
        for dtype, precision in benchmark.PRECISIONS
        for batch in benchmark.BATCHES
    ]
    for kind, row in zip(kinds, result["rows"], strict=True):
        assert not excesses(row), kind


def divide_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter's x / y be two last bits off, as a GPU's may be."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def divide(_: Any, x: Any, y: Any) -> Any:
        quotient = x.data / y.data
        for _ in range(2):
            quotient = np.nextafter(quotient, np.copysign(np.inf, quotient), dtype=quotient.dtype)
        return TensorHandle(quotient, x.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_fdiv", divide)


@pytest.mark.interpreted
def test_errors_of_clusters(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    divide_wrongly(monkeypatch)
    benchmark = plane_errors()
    monkeypatch.setattr(benchmark, "DRAWS", 3)
    row = benchmark.measure(torch.float32, "highest", 0.07, 1.0, "clusters", device)
    assert not excesses(row), row


# Sums over classes divide by tau and by the number of positives.
@pytest.mark.interpreted
def test_losses_of_classes_are_divided_right(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    z, labels = make_clusters(40, 48, 4, device=device), torch.arange(40, device=device) % 4
    lse = torch.full((40,), 14.0, device=device)

    def loss() -> torch.Tensor:
        how: Any = {"tau": 0.07, "gamma": math.inf, "mode": "hard", "impl": "triton"}
        return positive_pair_loss(z, lse, labels, **how).loss

    expected = loss()
    divide_wrongly(monkeypatch)
    assert torch.equal(loss(), expected)


# A mean similarity is nearly as large as lse where clusters are tight.
@pytest.mark.interpreted
def test_errors_of_clusters_by_class(device: str) -> None:
    labels, squares = torch.arange(61, device=device) % 6, {"triton": 0.0, "reference": 0.0}
    for seed in range(5):
        z = make_clusters(61, 48, 6, device=device, seed=seed)
        truth = class_loss(z.double(), labels, "reference")
        for impl in squares:
            loss = class_loss(z, labels, impl)
            squares[impl] += (loss.double() - truth).abs().max().item() ** 2
    assert squares["triton"] <= FACTOR**2 * squares["reference"]


def class_loss(z: torch.Tensor, labels: torch.Tensor, impl: Any) -> torch.Tensor:
    how: Any = {"tau": 0.07, "gamma": math.inf, "mode": "linear", "impl": impl}
    lse = pair_lse(z, 0.07, impl=impl)
    assert isinstance(lse, torch.Tensor)
    return positive_pair_loss(z, lse, labels, **how).loss
