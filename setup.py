"""Build the C++ extension spcl_fast._C; everything else is in pyproject.toml.

SPCL_BUILD=auto (default) builds it where a compiler and PyTorch are there, and else installs the
package without it; SPCL_BUILD=cpu fails instead; SPCL_BUILD=none never builds it;
SPCL_BUILD=sanitize builds it with checks of memory and of undefined behaviour, for make sanitize.
PyTorch must be seen by the build: pip install --no-build-isolation.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import setup

MODES = ("auto", "cpu", "sanitize", "none")
SOURCES = ["csrc/module.cpp", *map(str, sorted(Path("csrc/cpu").glob("*.cpp")))]
FLAGS = ["-O3", "-g0", "-ffp-contract=fast", "-Wall", "-Wno-psabi"]
if sys.platform == "linux":
    # at::parallel_for is serial without it. Not linked: the runtime must be the one in PyTorch.
    FLAGS.append("-fopenmp")
# Lines in the reports, and the overflows that Python's own -fwrapv defines away.
SANITIZE = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-wrapv"]
SANITIZE += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


def skip(reason: object) -> None:
    """Say in one line that the package goes without the extension."""
    line = " ".join(str(reason).split())
    sys.stderr.write(f"spcl_fast: installing without the C++ extension: {line}\n")


def extension_options(mode: str) -> dict[str, object]:
    """Return the arguments of `setup` that build the extension, none where it is not wanted."""
    if mode not in MODES:
        raise SystemExit(f"SPCL_BUILD must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "none":
        return {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        if mode != "auto":
            raise SystemExit(f"SPCL_BUILD={mode} needs PyTorch at build time: {error}") from error
        skip(f"PyTorch is not there at build time ({error}); use --no-build-isolation")
        return {}

    class Build(BuildExtension):
        """Under auto a failure is one line, not an error."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:  # no compiler, an old one, a half-installed PyTorch
                if mode != "auto":
                    raise
                skip(error)
                self.extensions = []

    sanitize = SANITIZE if mode == "sanitize" else []
    extension = CppExtension(
        "spcl_fast._C",
        SOURCES,
        extra_compile_args={"cxx": [*FLAGS, *sanitize]},
        extra_link_args=sanitize,
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": Build}}


setup(**extension_options(os.environ.get("SPCL_BUILD", "auto")))
