"""The kernels for compute capability 9.0 (kernels/hopper): values, and faults planted in them.

They run on such a GPU, and in an emulator of one, which checks races against loads in flight,
phases and deadlocks; `test_faults` shows that it would see them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pair_values import BF16, FP16, check
from planted import plant
from triton.runtime.errors import PTXASError

from spcl_fast.kernels import _configs
from spcl_fast.kernels._bound import Bound
from spcl_fast.kernels._similarities import PlanePairs
from spcl_fast.kernels.hopper import _choice, info
from spcl_fast.kernels.hopper._choice import Tiles
from spcl_fast.testing import make_embeddings


@pytest.fixture(autouse=True)
def _chosen(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let these kernels run for any number of pairs."""
    monkeypatch.setattr(_choice, "MIN_PAIRS", 1)
    if _configs.IS_INTERPRETED:
        pytest.skip("interpreted, the plain kernels run")
    if _configs.architecture(torch.device(device)) != _choice.ARCHITECTURE:
        pytest.skip("needs compute capability 9.0, or an emulator of it")
    monkeypatch.setattr(_choice, "_lack", None)


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a program visit all tiles of its rows, more than a ring holds."""
    monkeypatch.setattr(PlanePairs, "num_programs", 1)


def rows(count: int, dim: int, dtype: torch.dtype, device: str, seed: int = 0) -> torch.Tensor:
    return make_embeddings(count, dim, dtype=dtype, device=device, seed=seed)


def test_kernels_run(device: str) -> None:
    assert info.describe(torch.device(device)) == f"run on {device}"


def test_registers_of_all_roles_fit() -> None:
    gluon: Any = importlib.import_module("spcl_fast.kernels.hopper._gluon")
    for groups, given in ((2, gluon.REGISTERS_2), (3, gluon.REGISTERS_3)):
        of_groups = list(given.value)
        at_launch = gluon.MAX_REGISTERS[groups] * (groups + 1)
        assert len(of_groups) == groups
        assert at_launch * 128 <= 1 << 16  # threads of a group, registers of a multiprocessor
        assert at_launch - sum(of_groups) >= 24  # left to the warps that load


def test_few_pairs_are_left_to_plain_kernels(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = PlanePairs.of(rows(100, 64, BF16, device), None, 0.07)
    assert _choice.tiles_for(_choice.ROW_GRADIENT, pairs) is not None
    monkeypatch.setattr(_choice, "MIN_PAIRS", 100 * 100 + 1)
    assert _choice.tiles_for(_choice.ROW_GRADIENT, pairs) is None


def test_without_gluon_plain_kernels_run(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spcl_fast.kernels.hopper._gluon", None)
    assert "this Triton has no Gluon" in info.describe(torch.device(device))


def test_a_kernel_that_does_not_compile_is_left_out(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(*_args: object, **_constants: object) -> None:
        raise PTXASError("no such instruction")

    monkeypatch.setattr(Bound, "__getitem__", spoiled(Bound.__getitem__, launch))
    with pytest.warns(RuntimeWarning, match="capability 9.0 are left out"):
        check(rows(40, 64, BF16, device), 0.07)
    assert "does not compile (PTXASError)" in info.describe(torch.device(device))


def spoiled(launches: Callable[..., Any], launch: Callable[..., None]) -> Callable[..., Any]:
    """Return `Bound.__getitem__` with another launch of the kernels of kernels/hopper."""
    return lambda kernel, grid: (
        launch if kernel.__name__.startswith("hopper_") else launches(kernel, grid)
    )


# Ragged rows and columns, with and without a diagonal; bounded sums, and shifted ones.
@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize(
    ("num_rows", "num_refs", "dim", "dtype"),
    [
        (392, 0, 64, BF16),
        (65, 257, 200, FP16),
        (392, 0, 128, BF16),
        pytest.param(130, 449, 64, FP16, marks=pytest.mark.breadth),
        pytest.param(130, 300, 128, BF16, marks=pytest.mark.breadth),
        pytest.param(200, 0, 256, FP16, marks=pytest.mark.breadth),
    ],
)
def test_values(num_rows: int, num_refs: int, dim: int, dtype: torch.dtype, device: str) -> None:
    refs = rows(num_refs, dim, dtype, device, seed=1) if num_refs else None
    z = rows(num_rows, dim, dtype, device)
    for tau in (0.07, 0.005):
        check(z, tau, refs)


# Two and three planes, rectangular or square, and as breadth the other one.
@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize(
    ("precision", "num_refs", "dim"),
    [
        ("high", 190, 64),
        ("high", 0, 128),
        ("high", 0, 256),
        ("highest", 190, 64),
        ("highest", 0, 128),
        pytest.param("high", 0, 64, marks=pytest.mark.breadth),
        pytest.param("high", 70, 128, marks=pytest.mark.breadth),
        pytest.param("high", 70, 256, marks=pytest.mark.breadth),
        pytest.param("highest", 0, 64, marks=pytest.mark.breadth),
        pytest.param("highest", 70, 128, marks=pytest.mark.breadth),
    ],
)
def test_planes(precision: str, num_refs: int, dim: int, device: str) -> None:
    torch.set_float32_matmul_precision(precision)
    test_values(200, num_refs, dim, torch.float32, device)


# Rows of more features than a program holds: more steps than the ring has places.
@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize(
    ("num_rows", "num_refs", "dtype", "tau"),
    [
        (208, 0, BF16, 0.07),
        (130, 150, FP16, 0.005),
        pytest.param(390, 0, BF16, 0.005, marks=pytest.mark.breadth),
        pytest.param(270, 520, FP16, 0.07, marks=pytest.mark.breadth),
    ],
)
def test_wide_rows(
    num_rows: int, num_refs: int, dtype: torch.dtype, tau: float, device: str
) -> None:
    refs = rows(num_refs, 300, dtype, device, seed=1) if num_refs else None
    check(rows(num_rows, 300, dtype, device), tau, refs)


# Their planes; those of three are wide from 129 features on.
@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize(
    ("precision", "num_refs", "dim", "tau"),
    [
        ("high", 0, 260, 0.005),
        pytest.param("high", 140, 300, 0.07, marks=pytest.mark.breadth),
        pytest.param("highest", 140, 260, 0.07, marks=pytest.mark.breadth),
        ("highest", 0, 200, 0.005),
    ],
)
def test_planes_of_wide_rows(
    precision: str, num_refs: int, dim: int, tau: float, device: str
) -> None:
    torch.set_float32_matmul_precision(precision)
    refs = rows(num_refs, dim, torch.float32, device, seed=1) if num_refs else None
    check(rows(60 if num_refs else 144, dim, torch.float32, device), tau, refs)


# One row, and one more than a group of warps owns; programs share the columns of a block.
@pytest.mark.parametrize("num_rows", [1, 129])
def test_few_rows(num_rows: int, device: str) -> None:
    check(rows(num_rows, 64, BF16, device), 0.07)


Run = Callable[[str, str, str, str], None]


@pytest.fixture
def run_planted(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Check values with a fault planted, for more tiles than a small ring holds."""
    monkeypatch.setattr(PlanePairs, "num_programs", 1)

    def run(kernel: str, name: str, old: str, new: str) -> None:
        folder = "spcl_fast.kernels.hopper"
        monkeypatch.setitem(sys.modules, f"{folder}.{name}", plant(name, tmp_path, old, new))
        if name != kernel:  # which imports the other
            monkeypatch.setitem(sys.modules, f"{folder}.{kernel}", plant(kernel, tmp_path, "", ""))
        is_wide = kernel in ("h_panel", "wide_sums")
        small = Tiles(64, 64, 2, fma_exps=3) if kernel == "pair_sums" else Tiles(128, 32, 2)
        tiles = {(1, _choice.WIDE): Tiles(128, 128, 2)} if is_wide else {(1, 64): small}
        for table in ("PAIR_SUMS", "ROW_GRADIENT", "H_PANEL"):
            is_own = table == kernel.upper().replace("WIDE_SUMS", "PAIR_SUMS")
            monkeypatch.setattr(_choice, table, tiles if is_own else {})
        check(rows(*((100, 300) if is_wide else (300, 64)), BF16, device), 0.07)

    return run


LOADED = "        mbarrier.wait(ready.index(stage), (k // STAGES) & 1)\n        next_dots"
FREED = "        mbarrier.wait(empty.index(stage), ((k // STAGES) & 1) ^ 1)\n"
ENDED = "        dz, h = warpgroup_mma_wait(num_outstanding=0, deps=(next_dz, h))\n"
RELEASED = "        mbarrier.arrive(empty.index(before), count=1)\n"
SUMMED = "    mbarrier.wait(ready.index(stage), (k // STAGES) & 1)\n    dots"
MULTIPLIED = (
    "    dots = products(z_j, stage, z_i, behind(0), 0, z_i.shape[2], zero, P, IS_FINITE=True)\n"
)
HANDED_BACK = "    mbarrier.arrive(empty.index(stage), count=1)\n"
# Kernel, file, and what is replaced by what.
FAULTS = {
    "rows are weighed before they are there": (
        *("row_gradient", "_visits", LOADED, "        next_dots"),
    ),
    "a place is freed under a product": (
        *("row_gradient", "_visits", ENDED + RELEASED, RELEASED + ENDED),
    ),
    "a tile is summed before it is there": ("pair_sums", "pair_sums", SUMMED, "    dots"),
    "a place is freed before its product": (
        *("pair_sums", "pair_sums", MULTIPLIED + HANDED_BACK, HANDED_BACK + MULTIPLIED),
    ),
    "features are freed under their product": (
        *("h_panel", "_steps", "(place + STAGES - 1) % STAGES", "place % STAGES"),
    ),
    "a tile is loaded before its place is free": ("pair_sums", "_tiles", FREED, ""),
    "a wrong phase": ("row_gradient", "_tiles", "((k // STAGES) & 1) ^ 1", "(k // STAGES) & 1"),
}


@pytest.mark.gpucheck_fault
@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault: str, is_emulated: bool, run_planted: Run) -> None:
    if not is_emulated:
        pytest.skip("would hang a GPU, or be a race that shows only sometimes")
    with pytest.raises(Exception, match=r"hopper_.*_kernel"):
        run_planted(*FAULTS[fault])


EXCLUDED = "EXCLUDES_SELF=EXCLUDES_SELF"
CEILING, FLOOR = "gl.cdiv(M, BLOCK_N))", "M // BLOCK_N)"
WRONG = {
    "dz without the ragged tile": ("row_gradient", "row_gradient", CEILING, FLOOR),
    "lse without the ragged tile": ("pair_sums", "pair_sums", CEILING, FLOOR),
    "dz with the diagonal": (
        *("row_gradient", "row_gradient", f"{EXCLUDED}, IS_BOUNDED=True, scale=scale"),
        "EXCLUDES_SELF=False, IS_BOUNDED=True, scale=scale",
    ),
    "dz of wide rows with the diagonal": ("h_panel", "h_panel", EXCLUDED, "EXCLUDES_SELF=False"),
    "lse of wide rows with the diagonal": (
        *("wide_sums", "wide_sums", "M - first_col, EXCLUDES_SELF)", "M - first_col, False)"),
    ),
    "lse with the diagonal": (
        *(
            "pair_sums",
            "pair_sums",
            f"IS_EDGE=True, {EXCLUDED}",
            "IS_EDGE=True, EXCLUDES_SELF=False",
        ),
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_values_are_seen(wrong: str, run_planted: Run) -> None:
    with pytest.raises(AssertionError, match=rf"\b{wrong.split()[0]}\b"):
        run_planted(*WRONG[wrong])
