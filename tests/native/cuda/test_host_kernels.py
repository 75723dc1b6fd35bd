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
RACES = ("-g1", "-fsanitize=thread")
HostBuild = Callable[..., Path]


def run(program: Path, *arguments: str, planted: str = "") -> subprocess.CompletedProcess[str]:
    # ThreadSanitizer's fixed map of memory can collide with a randomised one.
    prefix = ["setarch", platform.machine(), "-R"] if shutil.which("setarch") else []
    return subprocess.run(
        [*prefix, str(program), *arguments],
        env=os.environ | {"TSAN_OPTIONS": "halt_on_error=1", "SPCL_PLANTED": planted},
        capture_output=True,
        text=True,
        timeout=600,
    )


# What is planted: the file, what is replaced everywhere, and by what; FAULT is whether it is there.
WRONG = {
    "diagonal left in": ("panel.cuh", "c - r != diagonal", "(FAULT || c - r != diagonal)"),
    "one column too many": ("panel.cuh", "c < cols", "(FAULT || c < cols)"),
    "read behind the panel": (
        "panel.cuh",
        "r < fragment.rows && fragment.cols > 0",
        "FAULT || (r < fragment.rows && fragment.cols > 0)",
    ),
    "factors of rows and columns swapped": (
        "gradient.cuh",
        "a * exp2_fast((sim[k] - own_lse) * kLog2E) +\n                  a_j[k] *",
        "(FAULT ? a_j[k] : a) * exp2_fast((sim[k] - own_lse) * kLog2E) + (FAULT ? a : a_j[k]) *",
    ),
    "weights of the wrong side": (
        "gradient.cuh",
        "float both = c_i * weight(lse_i - sims[j]);",
        "float both = c_i * weight((FAULT ? lse_j[j] : lse_i) - sims[j]);",
    ),
    "a shift for all": (
        "pair_lse.cuh",
        "tile_top - tile_low <= kMostSpread",
        "FAULT || tile_top - tile_low <= kMostSpread",
    ),
    "a column summed twice": (
        "panels.h",
        "std::clamp<int64_t>(r1 - c0,",
        "std::clamp<int64_t>(r1 - c0 - FAULT,",
    ),
    "a part left out": ("merge.cuh", "p += kWarps", "p += (1 + FAULT) * kWarps"),
    "a total that nobody wrote": (
        "merge.cuh",
        "side.is_first ? Sums::nothing() : *total",
        "side.is_first && !FAULT ? Sums::nothing() : *total",
    ),
    "an interval too long": (
        "positive_ranges.cuh",
        "key - other > window",
        "key - other > window + FAULT",
    ),
}
# Barriers taken away: the file, what stands before.
BARRIERS = {
    "maxima of columns": ("pair_lse.cuh", "top_of[warp()] = top, low_of[warp()] = low;\n"),
    "sums of columns": ("pair_lse.cuh", "put_columns(parts, by_col);\n"),
    "sums of warps": ("merge.cuh", "of_warp[warp()][lane()] = sum;\n"),
    "losses of columns": ("positive_pair_loss.cuh", "put_columns(parts, col_loss);\n"),
    "weights over losses": ("positive_pair_loss.cuh", "Add());\n"),
}
BARRIER = "  __syncthreads();\n"
RACY = {
    name: (file, before + BARRIER, f"{before}  if (!FAULT){BARRIER}")
    for name, (file, before) in BARRIERS.items()
}
PLANTED = """#include <cstdlib>
inline const int planted = std::atoi(std::getenv("SPCL_PLANTED"));
"""
Faults = dict[str, tuple[str, str, str]]
Seen = Callable[..., subprocess.CompletedProcess[str]]


def plant(faults: Faults, host_build: HostBuild, folder: Path, flags: tuple[str, ...]) -> Seen:
    """Return a function that runs cases with one of the faults, or with none, by its name."""
    shutil.copytree(CSRC / "cuda", folder / "cuda")
    numbers = {name: str(number) for number, name in enumerate(faults, 1)}
    for name, (file_name, old, new) in faults.items():
        file = folder / "cuda" / file_name
        text = file.read_text()
        assert old in text, f"{file_name} must hold {old!r}"
        file.write_text(text.replace(old, new.replace("FAULT", f"(planted == {numbers[name]})")))
    header = folder / "planted.h"
    header.write_text(PLANTED)
    program = host_build(PROGRAM, folder / "run", *flags, "-include", str(header), csrc=folder)

    def seen(name: str, *cases: str) -> subprocess.CompletedProcess[str]:
        return run(program, *cases, planted=numbers.get(name, "0"))

    return seen


@pytest.fixture(scope="module")
def wrong(host_build: HostBuild, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return plant(WRONG, host_build, tmp_path_factory.mktemp("wrong"), MEMORY)


@pytest.fixture(scope="module")
def racy(host_build: HostBuild, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return plant(RACY, host_build, tmp_path_factory.mktemp("racy"), RACES)


# Of the program whose lines can be made wrong, none of which is.
def test_values_and_memory(wrong: Seen) -> None:
    result = wrong("none")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 wrong" in result.stdout


# Of the program whose barriers can be taken away, none of which is.
def test_no_race(racy: Seen) -> None:
    result = racy("none", "races")
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]


@pytest.mark.parametrize("name", list(WRONG))
def test_a_planted_fault_is_seen(name: str, wrong: Seen) -> None:
    result = wrong(name, "short")
    assert result.returncode, result.stdout
    seen = ("ERROR: AddressSanitizer", "runtime error: ")
    assert "wrong" in result.stdout or any(x in result.stderr for x in seen)


@pytest.mark.parametrize("name", list(RACY))
def test_a_missing_barrier_is_reported(name: str, racy: Seen) -> None:
    result = racy(name, "races")
    assert result.returncode, result.stdout
    assert "data race" in result.stderr, result.stderr
