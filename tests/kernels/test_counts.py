"""What the compiled kernels were counted to do for a pair: that of the tables, and little."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from spcl_fast.kernels import _configs

REPOSITORY = Path(__file__).resolve().parents[2]


def load(name: str) -> Any:
    """Import a module of benchmarks from the repository, wherever the tests run."""
    sys.path.insert(0, str(REPOSITORY))
    try:
        return importlib.import_module(f"benchmarks.{name}")
    finally:
        sys.path.remove(str(REPOSITORY))


# The architectures of the tables of configurations; the kernels of kernels/hopper have their own.
FILES = {"sm_80.json": 80, "sm_90.json": 90, "hopper.json": 90}


@pytest.mark.parametrize(("file", "arch"), FILES.items())
def test_counts_are_of_the_present_configurations(
    file: str, arch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_configs, "IS_INTERPRETED", False)
    monkeypatch.setattr(_configs, "architecture", lambda _device: arch)
    counting = load("count_kernels")
    rows = load("kernel_tables").read(file)["rows"]
    before = torch.get_float32_matmul_precision()
    now = []
    for row in rows:
        dtype, precision = counting.KINDS[row["dtype"]]
        torch.set_float32_matmul_precision(precision)
        now.append(counting.PASSES[row["pass"]].pick(torch.empty(0, row["dim"], dtype=dtype)))
    torch.set_float32_matmul_precision(before)
    assert [row["config"] for row in rows] == [vars(config) for config in now]


# Products are those of whole warp groups on sm_90.
@pytest.mark.parametrize(("file", "arch"), FILES.items())
def test_a_pair_costs_what_the_tiling_implies(file: str, arch: int) -> None:
    rows = load("kernel_tables").read(file)["rows"]
    counting = load("count_kernels")
    ex2 = {"forward": 0.5, "backward": 1.0}
    assert rows
    for row in rows:
        assert not counting.repeats(row)
        name = row["pass"].removesuffix(", Hopper")
        if row["tau"] > 1 / 64 and name in ex2:
            by_units = 1 - row["config"].get("fma_exps", 0) / 16
            assert row["ex2"] == pytest.approx(ex2[name] * by_units, rel=0.01)
        if arch == 90:
            assert any(name.startswith("wgmma.mma_async") for name in row["instructions"])


def test_the_share_of_exponentials_by_fma_takes_fewest_clocks() -> None:
    rows = load("kernel_tables").read("exponentials.json")["rows"]
    sums = {x["fma_exps"]: max(x["clocks"].values()) for x in rows if "forward" in x["pass"]}
    tiles = load("count_kernels").PASSES["forward, Hopper"].table[1, 64]
    assert sums[tiles.fma_exps] == min(sums.values())
    assert sums[tiles.fma_exps] < 0.92 * sums[0]


# Products in N^2 D; special functions and bytes a pair.
@pytest.mark.parametrize(
    ("kind", "products", "num_bytes"),
    [("bf16", 2.6, 2.1), ("2 planes", 7.6, 6.2), ("3 planes", 15.1, 12.2)],
)
def test_a_step_costs_little(kind: str, products: float, num_bytes: float) -> None:
    step = load("kernel_tables").step(90, kind)
    assert step["products"] < products
    assert step["mufu"] < 1.6
    assert step["bytes"] < num_bytes


# At 512 features.
@pytest.mark.parametrize("kind", ["bf16", "2 planes"])
@pytest.mark.parametrize("name", ["forward", "backward of wide rows, h"])
def test_wide_rows_cost_no_more_by_the_kernels_for_capability_9(name: str, kind: str) -> None:
    tables = load("kernel_tables")
    rows = [row for row in tables.read("hopper.json")["rows"] if row["dim"] == 512]
    found = {row["pass"]: row for row in rows if row["dtype"] == kind}
    plain = found[name]
    hopper = found[f"{name.replace('forward', 'forward of wide rows')}, Hopper"]
    assert hopper["products"] <= 1.1 * plain["products"]
    assert tables.bytes_of(hopper) <= 1.1 * tables.bytes_of(plain)
