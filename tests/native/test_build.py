"""What SPCL_BUILD and the machine make setup.py compile, decided without compiling anything."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from setuptools import Distribution  # type: ignore[import-untyped]
from setuptools.command.build_ext import build_ext  # type: ignore[import-untyped]
from torch.utils import cpp_extension

from spcl_fast.info import describe
from spcl_fast.native import _extension

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return setup.py as a module, in a copy of the environment that names no GPU."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("TORCH_CUDA_ARCH_LIST", None)
    return load_setup()


@pytest.fixture
def on_windows(build: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return setup.py as a module as on Windows, with a clang-cl on PATH."""
    compiler = tmp_path / "clang-cl"
    compiler.touch(mode=0o755)
    os.environ["PATH"] = str(tmp_path)
    os.environ.pop("CXX", None)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "win32")
        return load_setup()


def load_setup() -> Any:
    spec = importlib.util.spec_from_file_location("spcl_fast_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Pretend = Callable[..., None]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pretend:
    """Return a function that makes PyTorch one for CUDA, and a toolkit with a compiler."""

    def install(*, torch_cuda: str | None = "13.0", toolkit: str | None = "13.0") -> None:
        nvcc = tmp_path / "bin" / "nvcc"
        nvcc.parent.mkdir()
        if toolkit is not None:
            nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {toolkit}, V0'\n")
            nvcc.chmod(0o755)
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))

    return install


def flags_of(extension: Any) -> list[str]:
    given = extension.extra_compile_args
    flags: list[str] = given["cxx"] if isinstance(given, dict) else given
    return flags


def sources(options: dict[str, Any]) -> list[list[str]]:
    return [x.sources for x in options["ext_modules"]]


# Every value that compiles, where CUDA is there and where PyTorch has none: no GPU is asked for.
@pytest.mark.parametrize(
    ("mode", "torch_cuda", "has_cuda"),
    [
        ("auto", "13.0", True),
        ("cuda", "13.0", True),
        ("cpu", "13.0", False),
        ("sanitize", "13.0", False),
        ("auto", None, False),
        ("cpu", None, False),
    ],
)
def test_what_is_compiled(
    mode: str, torch_cuda: str | None, has_cuda: bool, build: Any, pretend: Pretend
) -> None:
    pretend(torch_cuda=torch_cuda)
    options = build.extension_options(mode)
    assert sources(options) == [build.SOURCES, build.CUDA_SOURCES][: 1 + has_cuda]
    for x in options["ext_modules"]:
        flags = flags_of(x)
        assert flags[: len(build.FLAGS)] == build.FLAGS
        assert ("-fsanitize=address,undefined" in flags) == (mode == "sanitize")
        assert (build.STABLE_ABI in flags) == (x.sources == build.SOURCES)
        assert x.py_limited_api
    assert not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


# One wheel for all Pythons and, on CPUs, all PyTorch since the oldest that has the stable ABI.
def test_the_oldest_versions(build: Any) -> None:
    assert ".".join(map(str, build.OLDEST_TORCH)) == _extension.OLDEST_TORCH == "2.10"
    assert build.STABLE_ABI == "-DTORCH_TARGET_VERSION=0x020a000000000000"
    assert build.extension_options("cpu")["options"] == {"bdist_wheel": {"py_limited_api": "cp310"}}


@pytest.mark.parametrize("version", ["2.9.1", "1.13.1+cpu", "2.10.0a0", "2.13.0+cu130", "3.0.0"])
def test_an_older_torch_is_the_reason(
    version: str, build: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    if version.startswith(("2.1", "3")):
        assert build.torch_lacks(version) == ""
        return
    assert "ext_modules" not in build.extension_options("auto")
    needs = f"needs PyTorch 2.10 or later, got {version}"
    said = capfd.readouterr().err
    assert said == f"spcl_fast: installing without the C++ extension: {needs}\n"
    with pytest.raises(SystemExit, match=f"^SPCL_BUILD=cpu {re.escape(needs)}$"):
        build.extension_options("cpu")


def test_none_compiles_nothing(build: Any, pretend: Pretend) -> None:
    pretend()
    assert build.extension_options("none") == {}


def test_the_lists_hold_every_source(build: Any) -> None:
    files = {str(path) for suffix in ("cpp", "cu") for path in Path("csrc").rglob(f"*.{suffix}")}
    assert {*build.SOURCES, *build.CUDA_SOURCES} == files
    assert len(build.SOURCES) + len(build.CUDA_SOURCES) == len(files)


# What may be missing for CUDA: asked for, it is an error; else one line, and none where PyTorch is
# for CPUs anyway.
@pytest.mark.parametrize(
    ("facts", "message", "is_said"),
    [
        ({"torch_cuda": None}, "needs a PyTorch built for CUDA, got", False),
        ({"toolkit": None}, "needs the CUDA toolkit, and there is no bin/nvcc in CUDA_HOME=", True),
    ],
)
def test_what_cuda_needs(
    facts: dict[str, Any],
    message: str,
    is_said: bool,
    build: Any,
    pretend: Pretend,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pretend(**facts)
    with pytest.raises(SystemExit, match=f"^SPCL_BUILD=cuda {message}"):
        build.extension_options("cuda")
    assert sources(build.extension_options("auto")) == [build.SOURCES]
    said = capfd.readouterr().err
    assert said.startswith("spcl_fast: installing without its CUDA kernels: they need") == is_said
    assert said.count("\n") == int(is_said)


def test_cuda_home_can_be_missing(build: Any) -> None:
    assert build.cuda_lacks("2.13.0", "13.0", None) == (
        "the CUDA toolkit, in CUDA_HOME or with nvcc on PATH"
    )


def test_an_unknown_value_names_the_known_ones(build: Any) -> None:
    with pytest.raises(SystemExit, match="one of auto, cpu, cuda, sanitize, none, got 'gpu'"):
        build.extension_options("gpu")


# The oldest and newest toolkits that PyTorch is built with, and the last before 10.0 and 12.0;
# lists of users as PyTorch reads them.
@pytest.mark.parametrize(
    ("listed", "toolkit", "expected"),
    [
        (None, (11, 8), "7.5;8.0;9.0+PTX"),
        ("", (12, 6), "7.5;8.0;9.0+PTX"),
        (None, (12, 8), "7.5;8.0;9.0;10.0;12.0+PTX"),
        (None, (13, 0), "7.5;8.0;9.0;10.0;12.0+PTX"),
        ("8.6", (13, 0), "8.6"),
        ("8.0 9.0a+PTX", (13, 0), "8.0;9.0a+PTX"),
        ("8.0;9.0;", (11, 8), "8.0;9.0"),
    ],
)
def test_architectures(
    listed: str | None, toolkit: tuple[int, int], expected: str, build: Any
) -> None:
    assert build.architectures(listed, toolkit) == expected


@pytest.mark.parametrize("listed", ["Hopper", "8.0;90", "sm_80"])
def test_architectures_are_numbers(listed: str, build: Any) -> None:
    with pytest.raises(SystemExit, match=r"TORCH_CUDA_ARCH_LIST must be like 8\.0;9\.0\+PTX, got"):
        build.architectures(listed, (13, 0))


def test_architectures_reach_the_compiler(build: Any, pretend: Pretend) -> None:
    pretend()
    os.environ["TORCH_CUDA_ARCH_LIST"] = "8.0 9.0+PTX"
    found = build.extension_options("cuda")["ext_modules"][1]
    assert "-DSPCL_CUDA_ARCHITECTURES=8.0,9.0+PTX" in flags_of(found)
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "8.0;9.0+PTX"


# A compiler that fails with CUDA alone, and one that fails always.
@pytest.mark.parametrize("works_without", [True, False])
def test_auto_leaves_out_what_fails(
    works_without: bool,
    build: Any,
    pretend: Pretend,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    tried: list[list[str]] = []  # of names

    def compile_extensions(self: Any) -> None:
        assert self.compiler is None
        self.compiler = object()
        tried.append([x.name for x in self.extensions])
        is_fine = works_without and tried[-1] == ["spcl_fast._C"]
        if self.extensions and not is_fine:
            os.write(2, b"cc -c a.cpp\na.cpp:1:2: fatal error: omp.h: No such file\n")
            raise RuntimeError("no such\ncompiler")

    pretend()
    earlier = tmp_path / "spcl_fast" / "_C.cpython-310-x86_64-linux-gnu.so"
    earlier.parent.mkdir()
    earlier.touch()
    monkeypatch.setattr(cpp_extension.BuildExtension, "run", compile_extensions, raising=False)
    for mode in ("auto", "cuda"):
        options = build.extension_options(mode)
        distribution = Distribution({"name": "x", "ext_modules": options["ext_modules"]})
        command = options["cmdclass"]["build_ext"](distribution)
        command.ensure_finalized()
        command.build_lib = str(tmp_path)
        reason = tmp_path / "spcl_fast" / "not_built.txt"
        if mode == "cuda":
            with pytest.raises(RuntimeError, match="no such"):
                command.run()
            break
        command.run()
        assert tried == [["spcl_fast._C", "spcl_fast._C_cuda"], ["spcl_fast._C"]]
        assert [x.sources for x in command.extensions] == [build.SOURCES] * works_without
        said = capfd.readouterr().err.splitlines()
        of_cuda, *rest = [line for line in said if line.startswith("spcl_fast:")]
        message = "a.cpp:1:2: fatal error: omp.h: No such file"
        assert of_cuda == f"spcl_fast: installing without its CUDA kernels: {message}"
        assert reason.is_file() != works_without
        assert earlier.is_file() != works_without
        assert works_without or reason.read_text() == f"{message}\n"
        assert len(rest) == (0 if works_without else 1)


# The options of cl, in which others are ignored with a warning. /std:c++20 matters beyond the
# language: before it, clang-cl reads templates at the end of a file, without the pragmas in it.
def test_flags_on_windows(on_windows: Any) -> None:
    (extension,) = on_windows.extension_options("cpu")["ext_modules"]
    flags = extension.extra_compile_args  # a list: of setuptools' build_ext
    assert flags == [*on_windows.FLAGS, on_windows.STABLE_ABI, "-DPy_LIMITED_API=0x030a0000"]
    assert [x for x in flags if not x.startswith(("/clang:-", "-D", "-W"))] == ["/std:c++20"]
    assert extension.py_limited_api


def test_clang_cl_compiles_on_windows(on_windows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(build_ext, "build_extensions", lambda self: called.append(self.compiler.cc))
    command = on_windows.build_command("cpu")(Distribution({"name": "x"}))
    assert not isinstance(command, cpp_extension.BuildExtension)
    command.compiler = SimpleNamespace(cc="cl.exe", initialize=lambda: called.append("initialize"))
    command.build_extensions()
    assert called == ["initialize", "clang-cl"]


# Another compiler, and one that is not there.
@pytest.mark.parametrize("compiler", ["cl", "clang-cl"])
def test_windows_needs_clang_cl(
    compiler: str, on_windows: Any, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "clang-cl").rename(tmp_path / "cl")
    os.environ["CXX"] = compiler
    lack = f"needs clang-cl, on PATH or in CXX, got {compiler}"
    with pytest.raises(SystemExit, match=f"^SPCL_BUILD=cpu {lack}$"):
        on_windows.extension_options("cpu")
    assert list(on_windows.extension_options("auto")["cmdclass"]) == ["build_py"]
    said = capfd.readouterr().err
    assert said == f"spcl_fast: installing without the C++ extension: {lack}\n"


def test_windows_is_without_cuda(on_windows: Any, pretend: Pretend) -> None:
    pretend()
    assert sources(on_windows.extension_options("auto")) == [on_windows.SOURCES]
    with pytest.raises(SystemExit, match=r"^SPCL_BUILD=cuda needs Linux, got Windows$"):
        on_windows.extension_options("cuda")


@pytest.mark.parametrize(
    "line",
    [
        "a.cpp:1:2: error: no such name",
        "a.cpp(1,2): fatal error: 'omp.h' file not found",
        "LINK : fatal error LNK1181: cannot open input file 'python3.lib'",
    ],
)
def test_the_reason_is_the_first_error(line: str, build: Any) -> None:
    log = io.BytesIO(f"a.cpp: warning: error-prone\n{line}\nb.cpp: error: another\n".encode())
    assert build.reason_of(RuntimeError("failed"), log) == line


def test_without_pytorch_the_reason_is_noted(
    build: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    options = build.extension_options("auto")
    command = options["cmdclass"]["build_py"](Distribution({"name": "x", "py_modules": []}))
    command.build_lib = str(tmp_path)
    command.ensure_finalized()
    command.run()
    assert "use --no-build-isolation" in (tmp_path / "spcl_fast" / "not_built.txt").read_text()


def test_info_says_why_there_is_no_extension(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_extension, "_NOT_BUILT", tmp_path / "not_built.txt")
    monkeypatch.setattr(_extension, "_extension", None)
    assert describe()["extension"].startswith("not built: no reason noted; pip install")
    (tmp_path / "not_built.txt").write_text("a.cpp:1:2: fatal error: omp.h\n")
    assert describe()["extension"].startswith("not built: a.cpp:1:2: fatal error: omp.h; pip")


# Each extension with a PyTorch that it does not run with: a sentence, at the import and in `info`.
@pytest.mark.parametrize(
    ("function", "version", "fact", "sentence"),
    [
        ("_load_cpu", "2.9.1+cu126", "extension", "needs PyTorch 2.10 or later, got "),
        ("_load_cuda", "2.12.0", "extension on cuda", "was built with PyTorch 2.13.0, got "),
    ],
)
def test_another_torch_is_named(
    function: str,
    version: str,
    fact: str,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = SimpleNamespace(build_info=lambda: {"torch": "2.13.0"})
    monkeypatch.setattr(_extension, "_extension", None if function == "_load_cpu" else built)
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.warns(UserWarning, match=f"^spcl_fast._C(_cuda)? {sentence}{re.escape(version)}$"):
        module, reason = getattr(_extension, function)()
    assert module is None
    monkeypatch.setattr(_extension, "_WHY_NOT_LOADED", reason)
    monkeypatch.setattr(_extension, "_WHY_NO_CUDA", reason)
    assert f"{sentence}{version}" in describe()[fact]


def test_the_variable_is_read() -> None:
    command = [sys.executable, "setup.py", "--version"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"SPCL_BUILD": "x"}, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("SPCL_BUILD must be one of auto")
