"""Errors of the kernels against float64: at most twice those of eager PyTorch in the same dtype.

Those that benchmarks/plane_errors.py found, for many kinds of batches.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

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
