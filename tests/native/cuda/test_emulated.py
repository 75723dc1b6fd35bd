"""nvcc's code of the kernels of csrc/cuda, executed: values, races, bounds, and how memory is used.

SPCL_PTX_EMULATOR names a module with `Emu(ptx)`, whose `launch(name, grid, block, arguments)`
executes a kernel on arrays and raises Fault where it races or leaves them, and `report(emu)`, what
it did.
"""

from __future__ import annotations

import importlib
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[2] / "csrc" / "cuda"
TILE_ROWS, TILE_COLS, THREADS, WARP = 64, 128, 256, 32
TAU, GAMMA, UPPER, BINS = 0.07, 12.0, 40.0, 16
SCALE = np.array([1 / TAU, 0, np.log2(np.e) / TAU, 0])
SCALE[1::2] = SCALE[::2] - SCALE[::2].astype(np.float32)
MIN_EFFICIENCY = 0.9
MOST_WAYS = 2  # of a bank conflict
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def emulator() -> Any:
    if "SPCL_PTX_EMULATOR" not in os.environ:
        pytest.skip("needs an emulator of PTX, SPCL_PTX_EMULATOR")
    return importlib.import_module(os.environ["SPCL_PTX_EMULATOR"])


Compile = Callable[[Path], str]


@pytest.fixture(scope="module")
def compiled(nvcc: str, tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """A function that returns the code of the kernels with the headers of a folder."""

    def compile_to_ptx(csrc: Path) -> str:
        out = tmp_path_factory.mktemp("ptx") / "kernels.ptx"
        command = [nvcc, "-std=c++17", "-arch=sm_80", "-lineinfo", "-I", str(csrc), "-ptx"]
        command += ["-o", str(out), str(HERE / "kernels.cu")]
        subprocess.run(command, check=True, timeout=600)
        return out.read_text()

    return compile_to_ptx


@pytest.fixture(scope="module")
def ptx(compiled: Compile) -> str:
    return compiled(CSRC)


class Problem:
    """A panel of a matrix: rows from `row0`, columns from `col0`, and what its pairs add up to."""

    def __init__(self, num_rows: int, num_cols: int, row0: int, col0: int, size: int) -> None:
        self.num_rows, self.num_cols, self.row0, self.col0 = num_rows, num_cols, row0, col0
        self.is_square = size > 0
        rng = np.random.default_rng(num_rows)
        self.stride = -(-num_cols // 8) * 8
        self.rows = slice(row0, row0 + num_rows)
        self.cols = slice(col0, col0 + num_cols)
        total = max(size, row0 + num_rows, col0 + num_cols)
        self.total = -(-total // 4) * 4
        self.products = np.full((num_rows, self.stride), np.nan, np.float32)
        self.products[:, :num_cols] = rng.uniform(-1, 1, (num_rows, num_cols))
        self.sims = self.products[:, :num_cols].astype(np.float64) / TAU
        i, j = np.arange(num_rows)[:, None] + row0, np.arange(num_cols) + col0
        self.is_pair = (i != j) if self.is_square else np.ones((num_rows, num_cols), bool)
        self.first_col = 0
        self.lse = rng.uniform(14, 20, self.total).astype(np.float32)
        self.a = rng.uniform(-1, 1, self.total).astype(np.float32)
        self.c = rng.uniform(-1, 1, self.total).astype(np.float32)
        # Four classes: a quarter of the pairs is positive.
        self.ranks = rng.permutation(self.total).astype(np.int32)
        start = self.ranks * 4 // self.total * self.total // 4
        self.ranges = np.stack([start, start + self.total // 4], 1).astype(np.int32)
        low, high = self.ranges[self.rows, :1], self.ranges[self.rows, 1:]
        ranks = self.ranks[self.cols]
        self.positive = self.is_pair & (low <= ranks) & (ranks < high)
        self.grid = (-(-num_cols // TILE_COLS), -(-num_rows // TILE_ROWS))

    @property
    def panel(self) -> bytes:
        numbers = (self.row0, self.col0, self.num_rows, self.num_cols, self.stride)
        return struct.pack("7q", *numbers, self.first_col, self.is_square)

    def weights(self, lse: Array) -> Array:
        return np.maximum(0, 1 - (lse - self.sims) / GAMMA)


# Whole tiles; ragged ones with a diagonal that crosses tiles; a rectangle; a single pair's worth.
PROBLEMS = {
    "whole tiles": (128, 256, 0, 0, 0),
    "with a diagonal": (101, 203, 64, 32, 264),
    "ragged": (67, 131, 0, 128, 0),
    "one row": (1, 5, 0, 0, 0),
}


@pytest.fixture(params=list(PROBLEMS))
def problem(request: pytest.FixtureRequest) -> Problem:
    return Problem(*PROBLEMS[request.param])


class Run:
    """Launches of one kernel."""

    def __init__(self, emulator: Any, ptx: str) -> None:
        self._emulator, self._emu = emulator, emulator.Emu(ptx)

    def __call__(self, name: str, grid: Any, *arguments: Any, threads: int = THREADS) -> None:
        (found,) = [x for x in self._emu.mod.kernels if f"cuda{len(name.split('I')[0])}{name}" in x]
        self._emu.launch(found, grid, (threads,), list(arguments))

    def check_memory(self) -> None:
        """Hold the launches to their share of every sector, and to few conflicts."""
        facts = self._emulator.report(self._emu)
        assert facts["ld_sector_eff"] >= MIN_EFFICIENCY, facts
        assert facts["st_sector_eff"] is None or facts["st_sector_eff"] >= MIN_EFFICIENCY, facts
        for kind in ("sld", "sst"):
            passes, conflicts = (
                facts.get(f"{kind}_wavefronts", 0),
                facts.get(f"{kind}_conflicts", 0),
            )
            assert passes <= MOST_WAYS * (passes - conflicts), facts


@pytest.fixture
def launch(emulator: Any, ptx: str) -> Run:
    return Run(emulator, ptx)


def is_whole(problem: Problem) -> bool:
    """Whether sectors can be used whole: at the edges of ragged panels they are not."""
    return problem.num_rows % TILE_ROWS == problem.num_cols % TILE_COLS == 0


def log_sums(launch: Run, problem: Problem) -> tuple[Array, Array]:
    """Return log-sum-exps of rows and of columns of a panel."""
    tiles_of_cols, tiles_of_rows = problem.grid
    scale = SCALE.astype(np.float32)
    rows = np.full((tiles_of_cols, problem.num_rows, 2), np.nan, np.float32)
    cols = np.full((tiles_of_rows, problem.num_cols, 2), np.nan, np.float32)
    launch("sum_exponentials", problem.grid, problem.products, problem.panel, scale, rows, cols)
    out = []
    for parts in (rows, cols):
        size = parts.shape[1]
        total = np.tile(np.array([-np.inf, 0], np.float32), (size, 1))
        lse = np.full(size, np.nan, np.float32)
        grid = (-(-size // WARP),)
        launch("merge_log_sums", grid, parts, len(parts), size, size, total)
        launch("finish_log_sums", (-(-size // THREADS),), total, size, lse)
        out.append(lse)
    return out[0], out[1]


def test_log_sums(launch: Run, problem: Problem) -> None:
    rows, cols = log_sums(launch, problem)
    powers = np.where(problem.is_pair, np.exp(problem.sims), 0)
    np.testing.assert_allclose(rows, np.log(powers.sum(1)), atol=2e-6, rtol=0)
    np.testing.assert_allclose(cols, np.log(powers.sum(0)), atol=2e-6, rtol=0)
    if is_whole(problem):
        launch.check_memory()


def test_log_sums_of_any_size(launch: Run) -> None:
    problem = Problem(*PROBLEMS["with a diagonal"])
    problem.products *= np.geomspace(1e-3, 100, problem.num_rows, dtype=np.float32)[:, None]
    problem.products[5, 7], problem.products[9, 11] = np.inf, np.nan
    sims = np.where(problem.is_pair, problem.products[:, : problem.num_cols] / TAU, -np.inf)
    for lse, axis in zip(log_sums(launch, problem), (1, 0), strict=True):
        with np.errstate(invalid="ignore"):
            truth = np.logaddexp.reduce(sims.astype(np.float64), axis)
        np.testing.assert_allclose(lse, truth, rtol=1e-6, atol=2e-5)
        assert np.isinf(lse).sum() == np.isnan(lse).sum() == 1


def stored(kind: str, shape: tuple[int, int]) -> Array:
    dtype = {"f": np.float32, "6__half": np.float16, "13__nv_bfloat16": np.uint16}[kind]
    return np.zeros(shape, dtype)


def value_of(h: Array) -> Array:
    """Return float64 values; bfloat16 is kept in uint16."""
    if h.dtype == np.uint16:
        h = (h.astype(np.uint32) << 16).view(np.float32)
    return h.astype(np.float64)


# The three types in which a panel of the gradient is stored, and their rounding of values up to 4.
STORED = {"f": 3e-5, "6__half": 2e-3, "13__nv_bfloat16": 1.6e-2}


@pytest.mark.parametrize("kind", list(STORED))
def test_pair_gradient(launch: Run, problem: Problem, kind: str) -> None:
    p = problem
    num_labels = 2 if p.is_square else 0
    h = p.products.copy() if kind == "f" else stored(kind, p.products.shape)
    source = h if kind == "f" else p.products  # float32 is computed in place
    ranges, ranks, c = (np.concatenate([x, x]) for x in (p.ranges, p.ranks, p.c))
    launch(
        f"pair_gradientI{kind}E",
        p.grid,
        *(source, p.panel, h, p.stride, SCALE.astype(np.float32), p.lse, p.a, p.lse, p.a),
        *(struct.pack("2q", num_labels, p.total), ranges, ranks, c),
        np.full(2, GAMMA, np.float32),
    )
    lse_i, lse_j = p.lse[p.rows, None].astype(np.float64), p.lse[p.cols].astype(np.float64)
    truth = p.a[p.rows, None] * np.exp(p.sims - lse_i) + p.a[p.cols] * np.exp(p.sims - lse_j)
    both = p.c[p.rows, None] * p.weights(lse_i) + p.c[p.cols] * p.weights(lse_j)
    truth = np.where(p.is_pair, truth + num_labels * np.where(p.positive, both, 0), 0)
    np.testing.assert_allclose(value_of(h)[:, : p.num_cols], truth, atol=STORED[kind], rtol=0)
    if is_whole(p):
        launch.check_memory()


@pytest.mark.parametrize("kind", list(STORED))
@pytest.mark.parametrize("is_hard", [False, True])
def test_positive_gradient(launch: Run, problem: Problem, kind: str, is_hard: bool) -> None:
    p, gamma = problem, np.full(1, GAMMA, np.float32)
    h = stored(kind, p.products.shape)
    launch(
        f"positive_gradientI{kind}E",
        p.grid,
        *(p.products, p.panel, h, p.stride, SCALE.astype(np.float32)),
        *(p.lse, p.ranges, p.ranks, p.c, gamma, int(is_hard)),
    )
    lse_i, lse_j = p.lse[p.rows, None].astype(np.float64), p.lse[p.cols].astype(np.float64)
    weights = [(lse - p.sims <= GAMMA) if is_hard else p.weights(lse) for lse in (lse_i, lse_j)]
    truth: Array = p.c[p.rows, None] * weights[0]
    if p.is_square:
        truth = truth + p.c[p.cols] * weights[1]
    truth = np.where(p.positive, truth, 0)
    np.testing.assert_allclose(value_of(h)[:, : p.num_cols], truth, atol=STORED[kind], rtol=0)
    if is_whole(p):
        launch.check_memory()


@pytest.mark.parametrize("is_hard", [False, True])
def test_sums_of_positives(launch: Run, problem: Problem, is_hard: bool) -> None:
    p, (tiles_of_cols, tiles_of_rows) = problem, problem.grid
    rows = np.full((tiles_of_cols, p.num_rows, 2), np.nan, np.float32)
    cols = np.full((tiles_of_rows, p.num_cols, 2), np.nan, np.float32)
    gamma, scale = np.full(1, GAMMA, np.float32), SCALE.astype(np.float32)
    launch(
        "sum_positive_pairs",
        p.grid,
        *(p.products, p.panel, scale, p.lse, p.ranges, p.ranks, gamma, int(is_hard), rows, cols),
    )
    served = [(rows, p.lse[p.rows, None], 1)]
    if p.is_square:
        served.append((cols, p.lse[p.cols], 0))
    for parts, lse, axis in served:
        size = parts.shape[1]
        total = np.zeros((size, 2))
        launch("merge_pair_sums", (-(-size // WARP),), parts, len(parts), size, size, total)
        loss = lse.astype(np.float64) - p.sims
        weights = (loss <= GAMMA) if is_hard else p.weights(lse.astype(np.float64))
        weight = np.where(p.positive, weights, 0)
        np.testing.assert_allclose(total[:, 0], (weight * loss).sum(axis), rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(total[:, 1], weight.sum(axis), rtol=1e-5, atol=1e-4)
    if is_whole(p):
        launch.check_memory()


def test_histogram_of_positives(launch: Run, problem: Problem) -> None:
    p, counts = problem, np.zeros(BINS, np.uint64)
    upper = np.full(1, UPPER, np.float32)
    launch(
        "count_positive_pairs",
        p.grid,
        *(p.products, p.panel, SCALE.astype(np.float32), p.lse, p.ranges, p.ranks, upper, BINS),
        counts,
    )
    losses = [(p.lse[p.rows, None] - p.sims)[p.positive]]
    if p.is_square:
        losses.append((p.lse[p.cols] - p.sims)[p.positive])
    truth, _ = np.histogram(np.clip(np.concatenate(losses), 0, UPPER), BINS, (0, UPPER))
    assert counts.sum() == truth.sum()
    assert np.abs(counts.astype(np.int64) - truth).sum() <= 2  # on the edge of a bin


# A barrier taken away is a race to the emulator, the other two are wrong values.
FAULTS = {
    "no barrier": (
        "pair_lse.cuh",
        "  put_columns(parts, by_col);\n  __syncthreads();\n",
        "put_columns(parts, by_col);\n",
    ),
    "diagonal left in": ("panel.cuh", " && c - r != diagonal", ""),
    "one column too many": ("panel.cuh", "c < cols && ", ""),
}


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_planted_fault_is_seen(
    name: str, emulator: Any, compiled: Compile, tmp_path: Path
) -> None:
    file, old, new = FAULTS[name]
    csrc = shutil.copytree(CSRC, tmp_path / "cuda")
    text = (csrc / file).read_text()
    assert old in text, f"{file} must hold {old!r}"
    (csrc / file).write_text(text.replace(old, new))
    launch = Run(emulator, compiled(csrc))
    with pytest.raises((AssertionError, emulator.Fault)):
        test_log_sums(launch, Problem(*PROBLEMS["with a diagonal"]))
