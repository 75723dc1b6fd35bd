"""What the compiled kernels were counted to do for a pair: that of the tables, and little."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import triton

from spcl_fast.kernels import _configs

REPOSITORY = Path(__file__).resolve().parents[2]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32 tf32": torch.float32}


def load(name: str) -> Any:
    """Import a module of benchmarks from the repository, wherever the tests run."""
    sys.path.insert(0, str(REPOSITORY))
    try:
        return importlib.import_module(f"benchmarks.{name}")
    finally:
        sys.path.remove(str(REPOSITORY))


# The architectures of the tables of configurations.
@pytest.mark.parametrize("arch", [80, 90])
def test_counts_are_of_the_present_configurations(
    arch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr(_configs, "architecture", lambda _device: arch)
    passes = load("count_kernels").PASSES
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    rows = load("kernel_tables").read(f"sm_{arch}.json")["rows"]
    now = [
        passes[row["pass"]].pick(torch.empty(0, row["dim"], dtype=DTYPES[row["dtype"]]))
        for row in rows
    ]
    torch.set_float32_matmul_precision(before)
    assert [row["config"] for row in rows] == [vars(config) for config in now]


# Products in half precision are those of whole warp groups on sm_90.
@pytest.mark.parametrize("arch", [80, 90])
def test_a_pair_costs_what_the_tiling_implies(arch: int) -> None:
    rows = load("kernel_tables").read(f"sm_{arch}.json")["rows"]
    counting = load("count_kernels")
    ex2 = {"forward": 0.5, "backward by pairs": 0.5, "backward by rows": 1.0}
    assert rows
    for row in rows:
        assert not counting.repeats(row)
        if row["tau"] > 1 / 64 and row["pass"] in ex2:
            assert row["ex2"] == pytest.approx(ex2[row["pass"]], rel=0.01)
        if arch == 90 and row["dtype"] in ("bf16", "fp16"):
            assert any(name.startswith("wgmma.mma_async") for name in row["instructions"])


# Products in N^2 D; special functions and bytes a pair.
@pytest.mark.parametrize(
    ("backward", "products", "special", "num_bytes"),
    [("by rows", 2.6, 1.6, 6.0), ("by pairs", 2.2, 1.6, 6.0)],
)
def test_a_step_costs_little(
    backward: str, products: float, special: float, num_bytes: float
) -> None:
    step = load("kernel_tables").step(90, backward)
    assert step["products"] < products
    assert step["mufu"] < special
    assert step["bytes"] < num_bytes
