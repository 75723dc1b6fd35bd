"""The kernels of csrc/cuda on the host: right, within their memory, and without a race.

run_kernels.cpp has the cases. A thread of a block is a thread to ThreadSanitizer.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[2] / "csrc"
PROGRAM = HERE / "run_kernels.cpp"
MEMORY = ("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
ADDRESSES = ("-O0", "-g1", "-fsanitize=address")  # a third of the time to compile
RACES = ("-g1", "-fsanitize=thread")
HostBuild = Callable[..., Path]


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # ThreadSanitizer's fixed map of memory can collide with a randomised one.
    prefix = ["setarch", platform.machine(), "-R"] if shutil.which("setarch") else []
    return subprocess.run(
        [*prefix, str(program), *arguments],
        env=os.environ | {"TSAN_OPTIONS": "halt_on_error=1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_values_and_memory(host_build: HostBuild, tmp_path: Path) -> None:
    result = run(host_build(PROGRAM, tmp_path / "run", *MEMORY))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 wrong" in result.stdout


def test_no_race(host_build: HostBuild, tmp_path: Path) -> None:
    result = run(host_build(PROGRAM, tmp_path / "run", *RACES), "races")
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]


BARRIER = "  __syncthreads();\n"
# What is planted: the file, what is replaced, by what; of several places the first.
WRONG = {
    "diagonal left in": ("panel.cuh", " && c - r != diagonal", ""),
    "one column too many": ("panel.cuh", "c < cols && ", ""),
    "read behind the panel": ("panel.cuh", "r < fragment.rows && fragment.cols > 0", "true"),
    "factors of rows and columns swapped": (
        "gradient.cuh",
        "a * exp2_fast((sim[k] - own_lse) * kLog2E) +\n                  a_j[k] *",
        "a_j[k] * exp2_fast((sim[k] - own_lse) * kLog2E) +\n                  a *",
    ),
    "weights of the wrong side": (
        "gradient.cuh",
        "float both = c_i * weight(lse_i - sims[j]);",
        "float both = c_i * weight(lse_j[j] - sims[j]);",
    ),
    "a shift for all": ("pair_lse.cuh", "tile_top - tile_low <= kMostSpread", "true"),
    "a column summed twice": (
        "panels.h",
        "std::clamp<int64_t>(r1 - c0,",
        "std::clamp<int64_t>(r1 - c0 - 1,",
    ),
    "a part left out": ("merge.cuh", "p += kWarps", "p += 2 * kWarps"),
    "a total that nobody wrote": (
        "merge.cuh",
        "side.is_first ? Sums::nothing() : *total",
        "*total",
    ),
    "an interval too long": (
        "positive_ranges.cuh",
        "key - other > window",
        "key - other > window + 1",
    ),
}


def planted(folder: Path, fault: tuple[str, str, str], every: bool = False) -> Path:
    """Return a copy of csrc with a fault in it."""
    name, old, new = fault
    shutil.copytree(CSRC / "cuda", folder / "cuda")
    file = folder / "cuda" / name
    text = file.read_text()
    assert old in text, f"{name} must hold {old!r}"
    file.write_text(text.replace(old, new) if every else text.replace(old, new, 1))
    return folder


@pytest.mark.parametrize("name", list(WRONG))
def test_a_planted_fault_is_seen(name: str, host_build: HostBuild, tmp_path: Path) -> None:
    csrc = planted(tmp_path / "csrc", WRONG[name], every=True)
    result = run(host_build(PROGRAM, tmp_path / "run", *ADDRESSES, csrc=csrc), "short")
    assert result.returncode, result.stdout
    assert "wrong" in result.stdout or "ERROR: AddressSanitizer" in result.stderr


# Barriers taken away: the file, what stands before.
RACY = {
    "maxima of columns": ("pair_lse.cuh", "top_of[warp()] = top, low_of[warp()] = low;\n"),
    "sums of columns": ("pair_lse.cuh", "put_columns(parts, by_col);\n"),
    "sums of warps": ("merge.cuh", "of_warp[warp()][lane()] = sum;\n"),
    "losses of columns": ("positive_pair_loss.cuh", "put_columns(parts, col_loss);\n"),
    "weights over losses": ("positive_pair_loss.cuh", "Add());\n"),
}


@pytest.mark.parametrize("name", list(RACY))
def test_a_missing_barrier_is_reported(name: str, host_build: HostBuild, tmp_path: Path) -> None:
    file, before = RACY[name]
    csrc = planted(tmp_path / "csrc", (file, before + BARRIER, before), every=True)
    result = run(host_build(PROGRAM, tmp_path / "run", *RACES, csrc=csrc), "races")
    assert result.returncode, result.stdout
    assert "data race" in result.stderr, result.stderr
