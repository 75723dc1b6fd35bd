"""Build the C++ extension spcl_fast._C; everything else is in pyproject.toml.

SPCL_BUILD=auto (default) builds it where a compiler and PyTorch are there, and else installs the
package without it; SPCL_BUILD=cpu fails instead; SPCL_BUILD=none never builds it. PyTorch must be
seen by the build: pip install --no-build-isolation.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import setup

MODES = ("auto", "cpu", "none")
SOURCES = ["csrc/module.cpp", *map(str, sorted(Path("csrc/cpu").glob("*.cpp")))]
FLAGS = ["-O3", "-g0", "-ffp-contract=fast", "-Wall", "-Wno-psabi"]
if sys.platform == "linux":
    # at::parallel_for is serial without it. Not linked: the runtime must be the one in PyTorch.
    FLAGS.append("-fopenmp")


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
        if mode == "cpu":
            raise SystemExit(f"SPCL_BUILD=cpu needs PyTorch at build time: {error}") from error
        skip(f"PyTorch is not there at build time ({error}); use --no-build-isolation")
        return {}

    class Build(BuildExtension):
        """Under auto a failure is one line, not an error."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:  # no compiler, an old one, a half-installed PyTorch
                if mode == "cpu":
                    raise
                skip(error)
                self.extensions = []

    extension = CppExtension("spcl_fast._C", SOURCES, extra_compile_args={"cxx": FLAGS})
    return {"ext_modules": [extension], "cmdclass": {"build_ext": Build}}


setup(**extension_options(os.environ.get("SPCL_BUILD", "auto")))
