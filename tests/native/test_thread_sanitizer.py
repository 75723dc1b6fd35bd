"""Threads update tiles without a race: csrc/cpu/schedule.h and the kernels under ThreadSanitizer.

The program in thread_sanitizer/ needs a compiler alone, neither PyTorch nor the extension.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent / "thread_sanitizer"
CSRC = Path(__file__).resolve().parents[2] / "csrc" / "cpu"
COMPILER = shlex.split(os.environ.get("CXX", "g++"))
FLAGS = ["-std=c++17", "-O1", "-g1", "-fsanitize=thread", "-ffp-contract=fast", "-Wno-psabi"]
RACE_EXIT_CODE = 66
MOST_RUNS = 20


def compile_to(out: Path, *arguments: str | Path) -> Path:
    command = [*COMPILER, *FLAGS, *map(str, arguments), "-o", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return out


def run(
    program: Path, *arguments: str, prefix: tuple[str, ...], planted: int = 0
) -> subprocess.CompletedProcess[str]:
    options = f"halt_on_error=1 exitcode={RACE_EXIT_CODE}"
    return subprocess.run(
        [*prefix, str(program), *arguments],
        env=os.environ | {"TSAN_OPTIONS": options, "SPCL_PLANTED": str(planted)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("thread_sanitizer")


@pytest.fixture(scope="module")
def prefix(folder: Path) -> tuple[str, ...]:
    """What a program must be started with."""
    if shutil.which(COMPILER[0]) is None:
        pytest.skip(f"needs a C++ compiler, {COMPILER[0]}")
    source, program = folder / "probe.cpp", folder / "probe"
    source.write_text("int main() { return 0; }\n")
    command = [*COMPILER, "-fsanitize=thread", str(source), "-o", str(program)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if result.returncode:
        pytest.skip(f"{COMPILER[0]} has no ThreadSanitizer: {result.stderr.strip()[-200:]}")
    # Its fixed map of memory can collide with a randomised one.
    for prefix in ((), ("setarch", platform.machine(), "-R")):
        if prefix and shutil.which(prefix[0]) is None:
            continue
        if run(program, prefix=prefix).returncode == 0:
            return prefix
    pytest.skip("ThreadSanitizer does not start on this machine")


@pytest.fixture(scope="module")
def kernels(folder: Path, prefix: tuple[str, ...]) -> list[Path]:
    names = ["tile_kernels_baseline", "tile_kernels_avx2", "schedule"]
    include = ["-I", str(HERE)]
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(compile_to, folder / f"{name}.o", "-c", CSRC / f"{name}.cpp", *include)
            for name in names
        ]
        return [job.result() for job in jobs]


def build(folder: Path, schedule_header: Path, kernels: list[Path], *flags: str) -> Path:
    include = ["-I", str(HERE), "-I", str(schedule_header.parent), "-I", str(CSRC)]
    return compile_to(folder / "run", HERE / "run_schedules.cpp", *include, *kernels, *flags)


def test_no_race_and_no_bit_of_difference(
    folder: Path, prefix: tuple[str, ...], kernels: list[Path]
) -> None:
    result = run(build(folder, CSRC / "schedule.h", kernels), prefix=prefix)
    assert result.returncode == 0, result.stdout + result.stderr
    # 64 schedules on 5 numbers of threads, and on 2 with kernels
    assert int(result.stdout.split()[-2]) >= 64 * (5 + 2), result.stdout


ACQUIRE = "done[block].load(std::memory_order_acquire)"
ROWS, COLUMNS = "wait(tile.i, tile.before_i)", "wait(tile.j, tile.before_j)"
WAIT = f"!{ROWS} || !{COLUMNS}"
BODY = "body(tile, index, index + 1 < end ? index + 1 : after, scratch[worker].data());"
STORES = [f"done[tile.{x}].store(tile.before_{x} + 1, std::memory_order_release)" for x in "ij"]
# Each of the things that the scheme consists of, taken away: what is replaced, and by what, where
# FAULT is whether it is. A memory order that hangs on a value would be the strongest.
FAULTS = {
    "no waiting": [(WAIT, f"!FAULT && ({WAIT})")],
    "waiting for rows alone": [(f"!{COLUMNS}", f"(!FAULT && !{COLUMNS})")],
    "waiting for columns alone": [(f"!{ROWS}", f"(!FAULT && !{ROWS})")],
    "waiting one tile less": [
        (f"{ACQUIRE} != count", f"(FAULT ? {ACQUIRE} < count - 1 : {ACQUIRE} != count)")
    ],
    "no acquire": [(ACQUIRE, f"(FAULT ? {ACQUIRE.replace('acquire', 'relaxed')} : {ACQUIRE})")],
    "no release": [
        (store, f"(FAULT ? {store.replace('release', 'relaxed')} : {store})") for store in STORES
    ],
    "done before the body": [(BODY, f"if (FAULT) {STORES[0]}; {BODY}")],
    "one scratch for all": [("scratch[worker]", "scratch[FAULT ? 0 : worker]")],
}
PLANTED = """#include <cstdlib>
inline const int planted = std::atoi(std::getenv("SPCL_PLANTED"));
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, kernels: list[Path]) -> Path:
    """A program with all faults in it, of which SPCL_PLANTED names one by its number."""
    folder = tmp_path_factory.mktemp("planted")
    text = (CSRC / "schedule.h").read_text()
    for number, changes in enumerate(FAULTS.values(), 1):
        for old, new in changes:
            assert old in text, f"schedule.h must hold {old!r}"
            text = text.replace(old, new.replace("FAULT", f"(planted == {number})"))
    header = folder / "schedule.h"
    header.write_text(text)
    (folder / "planted.h").write_text(PLANTED)
    return build(folder, header, kernels, "-include", str(folder / "planted.h"))


def test_nothing_is_reported_where_no_fault_is(program: Path, prefix: tuple[str, ...]) -> None:
    result = run(program, "mix", prefix=prefix)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("number", range(1, len(FAULTS) + 1), ids=list(FAULTS))
def test_a_planted_race_is_reported(number: int, program: Path, prefix: tuple[str, ...]) -> None:
    # A busy machine can run the threads one after the other, so that nothing races; and the
    # program can see the wrong result before ThreadSanitizer sees the race.
    for _ in range(MOST_RUNS):
        result = run(program, "mix", prefix=prefix, planted=number)
        if result.returncode:
            break
    reported = result.returncode == RACE_EXIT_CODE and "data race" in result.stderr
    differs = result.returncode == 1 and "give another result" in result.stdout
    assert reported or differs, result.stdout + result.stderr
