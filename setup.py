"""Build the C++ extension; everything else is in pyproject.toml.

spcl_fast._C, for CPUs, uses LibTorch's stable ABI and Python's limited API alone: one build of it
runs with every PyTorch from 2.10 on and every Python from 3.10 on. spcl_fast._C_cuda, for GPUs,
runs with the PyTorch that it is built with.

SPCL_BUILD=auto (default) builds it where a compiler and PyTorch are there, with CUDA where PyTorch
and the toolkit are for CUDA, and else installs the package with less, or without it;
SPCL_BUILD=cpu builds it without CUDA and SPCL_BUILD=cuda with it, and both fail instead;
SPCL_BUILD=none never builds it; SPCL_BUILD=sanitize builds it with checks of memory and of
undefined behaviour, for make sanitize. TORCH_CUDA_ARCH_LIST names the GPUs; none need be there.
PyTorch must be seen by the build: pip install --no-build-isolation. On Windows the compiler is
clang-cl, on PATH or in CXX, with the headers and the linker of Visual Studio. Why there is no
extension is noted in spcl_fast/not_built.txt, for spcl-fast info.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

MODES = ("auto", "cpu", "cuda", "sanitize", "none")
SOURCES = ["csrc/module.cpp", *map(str, sorted(Path("csrc/cpu").glob("*.cpp")))]
CUDA_SOURCES = [str(x) for x in sorted(Path("csrc/cuda").glob("*")) if x.suffix in (".cpp", ".cu")]
IS_WINDOWS = sys.platform == "win32"
FLAGS = ["-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=fast", "-Wall", "-Wno-psabi"]
# clang-cl reads templates last before C++20, outside the pragmas that choose an instruction set.
if IS_WINDOWS:
    FLAGS = ["/clang:-O3", "/clang:-ffp-contract=fast", "/std:c++20", "-Wno-psabi"]
OLDEST_TORCH = (2, 10)  # spcl_fast/native/_extension.py says so too
STABLE_ABI = f"-DTORCH_TARGET_VERSION=0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000"
# Python without a global lock has no limited API.
HAS_LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")
LIMITED_API = {"py_limited_api": "cp310"} if HAS_LIMITED_API else {}
# Lines in the reports, and the overflows that Python's own -fwrapv defines away. What the optimiser
# takes to compile is more than what the tests gain by it.
SANITIZE = ["-O0", "-g1", "-fno-omit-frame-pointer", "-fno-wrapv"]
SANITIZE += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
# One of each generation, which the later ones of the same generation run too, and what is newer
# still compiles for itself from the last. 10.0 and 12.0 need a toolkit that knows them.
ARCHITECTURES = {(12, 8): "7.5;8.0;9.0;10.0;12.0+PTX", (0, 0): "7.5;8.0;9.0+PTX"}


def warn(reason: object, less: str = "the C++ extension") -> None:
    """Say in one line what the package goes without."""
    line = " ".join(str(reason).split())
    sys.stderr.write(f"spcl_fast: installing without {less}: {line}\n")


def note(package: Path, reason: str) -> None:
    """Keep the reason why there is no extension beside the modules; "" where there is one."""
    path = package / "not_built.txt"
    if reason:
        package.mkdir(parents=True, exist_ok=True)
        path.write_text(reason + "\n", encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def compiler_log() -> Iterator[IO[bytes]]:
    """Keep what the compiler prints in a file, and print it at the end."""
    with tempfile.TemporaryFile() as log:
        streams = sys.stdout, sys.stderr
        for stream in streams:
            stream.flush()
        kept = [os.dup(descriptor) for descriptor in (1, 2)]
        try:
            for descriptor in (1, 2):
                os.dup2(log.fileno(), descriptor)
            yield log
        finally:
            for stream in streams:
                stream.flush()
            for descriptor, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))


def reason_of(error: Exception, log: IO[bytes]) -> str:
    """Return the first error of the compiler in its log, else the exception, in one line."""
    log.seek(0)
    printed = log.read().decode(errors="replace")
    found = re.search(r"^.*\berror( \w+)?: .*$", printed, re.MULTILINE)
    return " ".join((found[0] if found else str(error)).split())


def torch_lacks(version: str) -> str:
    """Return what `version` of PyTorch lacks for the extension, "" where it lacks nothing."""
    release = tuple(int(x) for x in re.findall(r"\d+", version)[:2])
    oldest = ".".join(map(str, OLDEST_TORCH))
    return "" if release >= OLDEST_TORCH else f"needs PyTorch {oldest} or later, got {version}"


def windows_compiler() -> str:
    """Return the compiler for Windows; cl lacks the vector extension that csrc/cpu needs."""
    return os.environ.get("CXX", "clang-cl")


def clang_cl_lacks(compiler: str) -> str:
    """Return what is missing to compile with `compiler` on Windows, "" where nothing is."""
    is_there = "clang-cl" in Path(compiler).name.lower() and shutil.which(compiler)
    return "" if is_there else f"needs clang-cl, on PATH or in CXX, got {compiler}"


def cuda_lacks(torch_version: str, torch_cuda: str | None, cuda_home: str | None) -> str:
    """Return what is missing to compile for CUDA, "" where nothing is; no GPU is needed."""
    if IS_WINDOWS:
        return "Linux, got Windows"
    if torch_cuda is None:
        return f"a PyTorch built for CUDA, got {torch_version}"
    if not cuda_home:
        return "the CUDA toolkit, in CUDA_HOME or with nvcc on PATH"
    if shutil.which("nvcc", path=str(Path(cuda_home, "bin"))) is None:
        return f"the CUDA toolkit, and there is no bin/nvcc in CUDA_HOME={cuda_home}"
    return ""


def architectures(listed: str | None, toolkit: tuple[int, int]) -> str:
    """Return what TORCH_CUDA_ARCH_LIST says, split by semicolons, or what `toolkit` can compile."""
    if not listed:
        return next(value for since, value in ARCHITECTURES.items() if toolkit >= since)
    names = re.split(r"[;, ]+", listed.strip(";, "))
    for name in names:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name):
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST must be like 8.0;9.0+PTX, got {name!r} in it")
    return ";".join(names)


def toolkit_release(cuda_home: str) -> tuple[int, int]:
    """Return major and minor release of the compiler in `cuda_home`."""
    command = [str(Path(cuda_home, "bin", "nvcc")), "--version"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", printed)
    if release is None:
        raise RuntimeError(f"nvcc --version must name a release, got {printed!r}")
    return int(release[1]), int(release[2])


def cpu_extension(sanitize: Sequence[str] = ()) -> Extension:
    """Return the extension for tensors on CPUs."""
    from torch.utils.cpp_extension import CppExtension

    flags = [*FLAGS, STABLE_ABI, *sanitize]
    if IS_WINDOWS and HAS_LIMITED_API:  # which PyTorch's build_ext adds elsewhere
        flags.append("-DPy_LIMITED_API=0x030a0000")
    return CppExtension(
        "spcl_fast._C",
        SOURCES,
        extra_compile_args=flags,
        extra_link_args=[*sanitize],
        py_limited_api=HAS_LIMITED_API,
    )


def cuda_extension(cuda_home: str) -> Extension:
    """Return the extension for tensors on GPUs."""
    from torch.utils.cpp_extension import CUDAExtension

    listed = architectures(os.environ.get("TORCH_CUDA_ARCH_LIST"), toolkit_release(cuda_home))
    os.environ["TORCH_CUDA_ARCH_LIST"] = listed  # read when the compiler is called
    has_cuda = f"-DSPCL_CUDA_ARCHITECTURES={listed.replace(';', ',')}"
    return CUDAExtension(
        "spcl_fast._C_cuda",
        CUDA_SOURCES,
        extra_compile_args={"cxx": [*FLAGS, has_cuda], "nvcc": ["-O3"]},
        py_limited_api=HAS_LIMITED_API,
    )


def build_command(mode: str) -> type[build_ext]:
    """Return the command that compiles; under auto it leaves out what fails."""
    from torch.utils.cpp_extension import BuildExtension

    # On Windows PyTorch's calls cl, whatever CXX says, and without ninja it loses the flags.
    class Build(build_ext if IS_WINDOWS else BuildExtension):
        """Under auto a failure is one line, not an error."""

        def run(self) -> None:
            compiler = self.compiler  # a name, which the run replaces
            package = Path(self.get_ext_fullpath("spcl_fast._C")).parent
            reason = ""
            while self.extensions:
                self.compiler = compiler
                failure = None
                with compiler_log() as log:
                    try:
                        super().run()
                    except Exception as error:  # no compiler, an old one, half a PyTorch
                        failure, reason = error, reason_of(error, log)
                if failure is None:
                    note(package, "")
                    self.remove_others(package)
                    return
                if mode != "auto":
                    raise failure
                self.extensions.pop()  # of two, the one for GPUs
                warn(reason, "its CUDA kernels" if self.extensions else "the C++ extension")
            note(package, reason)

        def build_extensions(self) -> None:
            if IS_WINDOWS:
                self.compiler.initialize()
                self.compiler.cc = windows_compiler()
            super().build_extensions()

        def remove_others(self, package: Path) -> None:
            """Remove modules of earlier builds, which Python may find first: other file names."""
            built = {Path(self.get_ext_fullpath(x.name)).name for x in self.extensions}
            for path in package.glob("_C*.*"):
                if path.name not in built:
                    path.unlink()

    return Build


def build_command_without(reason: str) -> type[build_py]:
    """Return the command that installs the modules, and notes why there is no extension."""

    class Build(build_py):
        """The modules and a note."""

        def run(self) -> None:
            super().run()
            note(Path("." if self.editable_mode else self.build_lib, "spcl_fast"), reason)

    return Build


def extension_options(mode: str) -> dict[str, object]:
    """Return the arguments of `setup` that build the extension, none where it is not wanted."""
    if mode not in MODES:
        raise SystemExit(f"SPCL_BUILD must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "none":
        return {}
    try:
        import torch
        from torch.utils.cpp_extension import CUDA_HOME
    except ImportError as error:
        if mode != "auto":
            raise SystemExit(f"SPCL_BUILD={mode} needs PyTorch at build time: {error}") from error
        reason = f"PyTorch is not there at build time ({error}); use --no-build-isolation"
        warn(reason)
        return {"cmdclass": {"build_py": build_command_without(reason)}}
    lack = torch_lacks(torch.__version__)
    if IS_WINDOWS and not lack:
        lack = clang_cl_lacks(windows_compiler())
    if lack:
        if mode != "auto":
            raise SystemExit(f"SPCL_BUILD={mode} {lack}")
        warn(lack)
        return {"cmdclass": {"build_py": build_command_without(lack)}}
    lack = cuda_lacks(torch.__version__, torch.version.cuda, CUDA_HOME)
    if lack and mode == "cuda":
        raise SystemExit(f"SPCL_BUILD=cuda needs {lack}")
    if lack and mode == "auto" and torch.version.cuda is not None:
        warn(f"they need {lack}", "its CUDA kernels")
    has_cuda = mode in ("auto", "cuda") and not lack
    sanitize = SANITIZE if mode == "sanitize" else []
    extensions = [cpu_extension(sanitize)]
    if has_cuda:
        extensions.append(cuda_extension(str(CUDA_HOME)))
    return {
        "ext_modules": extensions,
        "cmdclass": {"build_ext": build_command(mode)},
        "options": {"bdist_wheel": LIMITED_API},
    }


if __name__ == "__main__":
    setup(**extension_options(os.environ.get("SPCL_BUILD", "auto")))
