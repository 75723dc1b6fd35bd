"""What nvcc makes of every kernel of csrc/cuda, within limits.txt: no spills, no local memory.

    python tests/native/cuda/test_compiled.py

prints the table anew, the worst of all architectures; without PyTorch, a GPU or a driver.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[2] / "csrc" / "cuda"
LIMITS = HERE / "limits.txt"
# The oldest that is built for, and each generation since 16-bit products of bfloat16.
ARCHITECTURES = ("75", "80", "90", "100", "120")
FLAGS = ["-std=c++17", "-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror"]
FLAGS += ["-Xptxas", "-v,-warn-spills,--warn-on-local-memory-usage"]
NAME = re.compile(r"Compiling entry function '_ZN4spcl4cuda\d+([a-z_]+?)(?:I(.*?)E)?E")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")
TYPES = {
    "f": "float",
    "6__half": "half",
    "13__nv_bfloat16": "bfloat16",
    "l": "int64",
    "d": "double",
    "NS0_7LogSums": "LogSums",
    "NS0_8PairSums": "PairSums",
}


def compile_all(nvcc: str, architecture: str, out: Path) -> str:
    command = [nvcc, *FLAGS, f"-arch=sm_{architecture}", "-I", str(CSRC), "-cubin", "-o", str(out)]
    result = subprocess.run(
        [*command, str(HERE / "kernels.cu")], capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def resources(printed: str) -> Iterator[tuple[str, int, int]]:
    """Yield name, registers and bytes of shared memory of every kernel."""
    for entry in printed.split("ptxas info    : ")[1:]:
        if found := NAME.search(entry):
            base, argument = found.groups()
            name = f"{base} {TYPES[argument]}" if argument else base
        elif found := USED.search(entry):
            yield name, int(found[1]), int(found[2] or 0)


def read_limits() -> dict[str, tuple[int, int]]:
    rows = [line.split("|") for line in LIMITS.read_text().splitlines()[1:]]
    return {name.strip(): (int(registers), int(shared)) for name, registers, shared in rows}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_within_limits(architecture: str, nvcc: str, tmp_path: Path) -> None:
    limits = read_limits()
    used = list(resources(compile_all(nvcc, architecture, tmp_path / "out.cubin")))
    assert {name for name, *_ in used} == set(limits) != set()
    for name, registers, shared in used:
        assert registers <= limits[name][0], f"{name}: {registers} registers"
        assert shared <= limits[name][1], f"{name}: {shared} bytes of shared memory"


def test_every_kernel_has_a_limit() -> None:
    kernels = re.compile(r"__global__[^;{]*?void (\w+)\(")
    written = {x for file in CSRC.glob("*.cuh") for x in kernels.findall(file.read_text())}
    assert written == {name.split()[0] for name in read_limits()} != set()


def print_table() -> None:
    worst: dict[str, tuple[int, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for architecture in ARCHITECTURES:
            for name, *used in resources(compile_all("nvcc", architecture, Path(folder, "out"))):
                registers, shared = worst.get(name, (0, 0))
                worst[name] = max(registers, used[0]), max(shared, used[1])
    sys.stdout.write(f"{'kernel':<30} | registers | shared\n")
    for name in sorted(worst):
        sys.stdout.write(f"{name:<30} | {worst[name][0]:>9} | {worst[name][1]:>6}\n")


if __name__ == "__main__":
    print_table()
