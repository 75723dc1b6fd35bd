"""The kernels of csrc/cuda without a GPU: how they are compiled, for a device and for the host.

SPCL_CUDA_SIMULATOR is a header ahead of which nothing is included: it runs `launch(kernel, grid,
block, shared_bytes, ...)` of kernel source on the host, in the namespace that it is named after.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[2] / "csrc"
sys.path.append(str(HERE))
TORCH = Path(torch.__file__).resolve().parent
COMPILER = shlex.split(os.environ.get("CXX", "g++"))
HostBuild = Callable[..., Path]

# Compilers do not run in a process that was started for checks of memory.
if "libasan" in os.environ.get("LD_PRELOAD", ""):
    collect_ignore_glob = ["test_*.py"]


def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="session")
def nvcc() -> str:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("needs the CUDA compiler, nvcc")
    return compiler


@pytest.fixture(scope="session")
def cuda_include(nvcc: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the CUDA runtime's headers."""
    source = tmp_path_factory.mktemp("nvcc") / "empty.cu"
    source.touch()
    printed = run([nvcc, "--dryrun", "-c", str(source)]).stderr
    top = re.search(r"^#\$ TOP=(.*)$", printed, re.MULTILINE)
    assert top is not None, printed
    return (Path(top[1]) / "include").resolve()


@pytest.fixture(scope="session")
def host_build(cuda_include: Path) -> HostBuild:
    """A function that compiles kernel source for the host, with headers from `csrc` first."""
    simulator = Path(os.environ.get("SPCL_CUDA_SIMULATOR", ""))
    if not simulator.is_file():
        pytest.skip("needs a simulator of kernels, SPCL_CUDA_SIMULATOR")
    if shutil.which(COMPILER[0]) is None:
        pytest.skip(f"needs a C++ compiler, {COMPILER[0]}")

    def build(source: Path, out: Path, *flags: str, csrc: Path = CSRC) -> Path:
        command = [*COMPILER, "-x", "c++", "-std=c++17", "-O1", f"-DSIMULATOR={simulator.stem}"]
        command += ["-Wno-unknown-pragmas", "-include", str(HERE / "host" / "fibers.h")]
        command += ["-include", str(simulator.resolve())]
        command += ["-I", str(csrc / "cuda"), "-I", str(cuda_include), str(source), "-o", str(out)]
        result = run([*command, *flags])
        assert result.returncode == 0, result.stderr
        return out

    return build


@pytest.fixture(scope="session")
def ops(host_build: HostBuild, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """csrc/cuda/*.cu as they are, with kernels that run on the host: host/host_ops.cpp."""
    include = [TORCH / "include", TORCH / "include" / "torch" / "csrc" / "api" / "include"]
    flags = ["-fPIC", "-shared", "-Wno-psabi", "-I", str(HERE / "host")]
    flags += [x for folder in include for x in ("-I", str(folder))]
    flags += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    flags += [f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    library = tmp_path_factory.mktemp("host_ops") / "host_ops.so"
    host_build(HERE / "host" / "host_ops.cpp", library, *flags)
    torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    return torch.ops.spcl_fast_cuda_on_host
