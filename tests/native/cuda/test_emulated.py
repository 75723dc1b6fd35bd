"""nvcc's code of the kernels of csrc/cuda, executed: values, races, bounds, and how memory is used.

SPCL_PTX_EMULATOR names a module with `Emu(ptx)`, whose `launch(name, grid, block, arguments)`
executes a kernel on arrays and raises Fault where it races or leaves them, `TensorMap`, an argument
of bytes that tell the address of an array, and `report(emu)`, what it did.
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
from emulation import (
    GAMMA,
    MOST_LABELS,
    PROBLEMS,
    TAU,
    THREADS,
    TILE_COLS,
    TILE_ROWS,
    WARP,
    Array,
    Problem,
    Run,
    Struct,
    labels_of,
    scalar,
    values,
)

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[2] / "csrc" / "cuda"
UPPER, BINS = 40.0, 16


@pytest.fixture(scope="module")
def emulator() -> Any:
    if "SPCL_PTX_EMULATOR" not in os.environ:
        pytest.skip("needs an emulator of PTX, SPCL_PTX_EMULATOR")
    return importlib.import_module(os.environ["SPCL_PTX_EMULATOR"])


Compile = Callable[..., str]


@pytest.fixture(scope="module")
def compiled(nvcc: str, tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """A function that returns the code of a source of kernels, with the headers of a folder."""

    def compile_to_ptx(csrc: Path, source: Path = HERE / "kernels.cu") -> str:
        out = tmp_path_factory.mktemp("ptx") / "kernels.ptx"
        command = [nvcc, "-std=c++17", "-arch=sm_80", "-lineinfo", "-I", str(csrc), "-ptx"]
        subprocess.run([*command, "-o", str(out), str(source)], check=True, timeout=600)
        return out.read_text()

    return compile_to_ptx


@pytest.fixture(scope="module")
def ptx(compiled: Compile) -> str:
    return compiled(CSRC)


@pytest.fixture(params=list(PROBLEMS))
def problem(request: pytest.FixtureRequest) -> Problem:
    return Problem(*PROBLEMS[request.param])


@pytest.fixture
def launch(emulator: Any, ptx: str) -> Run:
    return Run(emulator, ptx)


def is_whole(problem: Problem) -> bool:
    """Whether sectors can be used whole: at the edges of ragged panels they are not."""
    return problem.num_rows % TILE_ROWS == problem.num_cols % TILE_COLS == 0


def log_sums(launch: Run, problem: Problem, tau: Any = None) -> tuple[Array, Array]:
    """Return log-sum-exps of rows and of columns of a panel."""
    tau = scalar(TAU) if tau is None else tau
    tiles_of_cols, tiles_of_rows = problem.grid
    rows = np.full((tiles_of_cols, problem.num_rows, 2), np.nan, np.float32)
    cols = np.full((tiles_of_rows, problem.num_cols, 2), np.nan, np.float32)
    launch("sum_exponentials", problem.grid, problem.products, problem.panel, tau, rows, cols)
    sizes = (problem.num_rows, problem.num_cols)
    totals = [np.full((size, 2), np.nan, np.float32) for size in sizes]
    lse = [np.full(size, np.nan, np.float32) for size in sizes]
    grid = (sum(-(-size // WARP) for size in sizes),)
    sums = Struct(rows, cols, *totals, *lse)
    launch("merge_sumsINS0_7LogSumsE", grid, sums, *problem.sides())
    return lse[0], lse[1]


def test_log_sums(launch: Run, problem: Problem) -> None:
    rows, cols = log_sums(launch, problem)
    powers = np.where(problem.is_pair, np.exp(problem.sims), 0)
    np.testing.assert_allclose(rows, np.log(powers.sum(1)), atol=2e-6, rtol=0)
    np.testing.assert_allclose(cols, np.log(powers.sum(0)), atol=2e-6, rtol=0)
    if is_whole(problem):
        launch.check_memory()


# A temperature on the device, in every dtype that it may have: the kind of a Scalar, its value.
KINDS = {
    "float": (0, np.float32(TAU)),
    "double": (1, np.float64(TAU)),
    "half": (2, np.float16(TAU)),
    "bfloat16": (3, np.uint16(np.float32(TAU).view(np.uint32) >> 16)),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_temperature_on_the_device(launch: Run, kind: str) -> None:
    problem = Problem(*PROBLEMS["ragged"])
    number, value = KINDS[kind]
    tau = Struct(np.full(1, value), struct.pack("iff4x", number, np.nan, np.nan))
    rows, _ = log_sums(launch, problem, tau)
    truth = value_of(np.full(1, value))[0]
    powers = np.where(problem.is_pair, np.exp(problem.sims * TAU / truth), 0)
    np.testing.assert_allclose(rows, np.log(powers.sum(1)), atol=2e-6, rtol=0)


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


# Log-sum-exps alone, labels alone, both: whether there are log-sum-exps, labels, hard weights.
TERMS = {
    "lse": (True, 0, False),
    "linear": (False, 1, False),
    "hard": (False, 1, True),
    "both": (True, 2, False),
}


# float32 in place.
@pytest.mark.parametrize("kind", list(STORED))
@pytest.mark.parametrize("terms", list(TERMS))
def test_pair_gradient(launch: Run, problem: Problem, kind: str, terms: str) -> None:
    p, (has_dlse, num_labels, is_hard) = problem, TERMS[terms]
    h = p.products.copy() if kind == "f" else stored(kind, p.products.shape)
    source = h if kind == "f" else p.products
    dlse = values(p.a if has_dlse else None)
    upstream = Struct(p.lse, p.lse, *dlse, *dlse)
    unit = np.full(1, 0.25, np.float32)
    labels = labels_of(p, num_labels, is_hard, has_factors=True)
    how = (p.panel, h, p.stride, scalar(TAU), upstream, labels)
    launch(f"pair_gradientI{kind}E", p.grid, source, *how, unit if kind == "6__half" else 0)
    lse_i, lse_j = p.lse[p.rows, None].astype(np.float64), p.lse[p.cols].astype(np.float64)
    truth = p.a[p.rows, None] * np.exp(p.sims - lse_i) + p.a[p.cols] * np.exp(p.sims - lse_j)
    weights = [(lse - p.sims <= GAMMA) if is_hard else p.weights(lse) for lse in (lse_i, lse_j)]
    both = p.c[p.rows, None] * weights[0]
    if p.is_square:
        both = both + p.c[p.cols] * weights[1]
    truth = has_dlse * truth - num_labels * np.where(p.positive, both, 0)
    actual = value_of(h)[:, : p.num_cols] * TAU * (4 if kind == "6__half" else 1)
    np.testing.assert_allclose(actual, np.where(p.is_pair, truth, 0), atol=STORED[kind], rtol=0)
    if is_whole(p):
        launch.check_memory()


@pytest.mark.parametrize("is_hard", [False, True])
def test_sums_of_positives(launch: Run, problem: Problem, is_hard: bool) -> None:
    p, (tiles_of_cols, tiles_of_rows), num_labels = problem, problem.grid, 2
    rows = np.full((num_labels, tiles_of_cols, p.num_rows, 2), np.nan, np.float32)
    cols = np.full((num_labels, tiles_of_rows, p.num_cols, 2), np.nan, np.float32)
    labels = labels_of(p, num_labels, is_hard, has_factors=False)
    grid = (*p.grid, num_labels)
    launch("sum_positive_pairs", grid, p.products, p.panel, scalar(TAU), p.lse, labels, rows, cols)
    loss = p.lse[p.rows, None].astype(np.float64) - p.sims
    served = [(rows, loss, 1)]
    if p.is_square:
        served.append((cols, p.lse[p.cols].astype(np.float64) - p.sims, 0))
    for parts, loss, axis in served:
        weights = (loss <= GAMMA) if is_hard else np.clip(1 - loss / GAMMA, 0, 1)
        weight = np.where(p.positive, weights, 0)
        size = parts.shape[2]
        totals = np.full((num_labels, size, 2), np.nan)
        counts = np.full(size, 2, np.int64)
        out = [np.full((2, size), np.nan, np.float32) for _ in range(num_labels)]
        empty = [None] * (MOST_LABELS - num_labels)
        sums = Struct(
            *(parts, parts, totals, size),
            *[counts] * num_labels,
            *empty,
            *(x[0] for x in out),
            *empty,
            *(x[1] for x in out),
            *empty,
        )
        side = struct.pack("7q", 0, size, parts.shape[1], size, 0, 1, 1)
        none = struct.pack("7q", 0, 0, 0, 0, 0, 1, 1)
        grid = (-(-size // WARP), num_labels)
        launch("merge_sumsINS0_8PairSumsE", grid, sums, side, none)
        for x in out:
            np.testing.assert_allclose(2 * x[0], (weight * loss).sum(axis), rtol=1e-5, atol=1e-4)
            np.testing.assert_allclose(x[1], weight.sum(axis), rtol=1e-5, atol=1e-4)
    if is_whole(p):
        launch.check_memory()


@pytest.mark.parametrize("kind", ["l", "d"])
def test_ranges_of_labels(launch: Run, kind: str) -> None:
    dtype, window = (np.int64, 0) if kind == "l" else (np.float64, 1.5)
    labels = np.random.default_rng(0).integers(-2, 6, 77).astype(dtype)
    refs = np.random.default_rng(1).integers(-2, 6, 301).astype(dtype)
    if kind == "d":
        labels[5], refs[7], refs[8] = np.nan, np.inf, np.nan
    known = np.where(np.isfinite(refs), refs, -1)
    order = np.argsort(-np.maximum(known, -1), kind="stable").astype(np.int64)
    inside = np.abs(labels[:, None] - known) <= window
    positive = inside & (labels[:, None] >= 0) & (known >= 0)
    for name in ("count_ranges", "find_ranges"):
        ranges, ranks = np.full((77, 2), -1, np.int32), np.full(301, -1, np.int32)
        num_pos = np.full(77, -1, np.int64)
        columns = (refs,) if name == "count_ranges" else (known[order], order)
        threads_of = WARP if name == "count_ranges" else 1
        units = 77 + 301 if name == "count_ranges" else 301
        grid = (-(-units * threads_of // THREADS),)
        how = (301, dtype(window), 0, ranges, num_pos, ranks)
        launch(f"{name}I{kind}E", grid, labels, 77, *columns, *how)
        np.testing.assert_array_equal(ranks[order], np.arange(301))
        found = (ranges[:, :1] <= ranks) & (ranks < ranges[:, 1:])
        np.testing.assert_array_equal(found, positive)
        np.testing.assert_array_equal(num_pos, positive.sum(1))


def test_histogram_of_positives(launch: Run, problem: Problem) -> None:
    p, counts = problem, np.zeros(BINS, np.uint64)
    how = (p.panel, scalar(TAU), p.lse, p.ranges, p.ranks, scalar(UPPER), BINS, counts)
    launch("count_positive_pairs", p.grid, p.products, *how)
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


# What `log_sums` launches, a third of the time to compile.
LOG_SUMS = """#include "pair_lse.cuh"
template __global__ void spcl::cuda::merge_sums<spcl::cuda::LogSums>(
    spcl::cuda::LogSums, spcl::cuda::Side, spcl::cuda::Side);
"""


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_planted_fault_is_seen(
    name: str, emulator: Any, compiled: Compile, tmp_path: Path
) -> None:
    file, old, new = FAULTS[name]
    csrc, source = shutil.copytree(CSRC, tmp_path / "cuda"), tmp_path / "log_sums.cu"
    text = (csrc / file).read_text()
    assert old in text, f"{file} must hold {old!r}"
    (csrc / file).write_text(text.replace(old, new))
    source.write_text(LOG_SUMS)
    launch = Run(emulator, compiled(csrc, source))
    with pytest.raises((AssertionError, emulator.Fault)):
        test_log_sums(launch, Problem(*PROBLEMS["with a diagonal"]))
