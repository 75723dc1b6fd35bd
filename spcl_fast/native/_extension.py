"""The extension module, if it is there.

It is loaded here and not on first use: torch.compile sees a constant then, not an import.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

_NOT_BUILT = Path(__file__).parents[1] / "not_built.txt"  # of setup.py


def _load() -> ModuleType | None:
    if importlib.util.find_spec("spcl_fast._C") is None:
        return None
    try:
        return importlib.import_module("spcl_fast._C")
    except ImportError as error:  # built for another PyTorch
        warnings.warn(f"spcl_fast._C is installed but does not load: {error}", stacklevel=2)
        return None


_extension = _load()
_IS_BUILT = _extension is not None


def is_built() -> bool:
    """Return whether the extension is installed and loads."""
    return _IS_BUILT


def why_not_built() -> str:
    """Return why there is no extension that loads, "" where that is not known."""
    if importlib.util.find_spec("spcl_fast._C") is None:
        return _NOT_BUILT.read_text(encoding="utf-8").strip() if _NOT_BUILT.is_file() else ""
    try:
        importlib.import_module("spcl_fast._C")
    except ImportError as error:
        return f"spcl_fast._C is installed but does not load: {error}"
    return ""


def build_info() -> dict[str, str]:
    """Return facts about the build by name, empty if not built.

    torch, compiler and cpu_kernels; built with CUDA, cuda and cuda_architectures too.
    """
    return {} if _extension is None else dict(_extension.build_info())


def release_kept_memory() -> None:
    """Free the memory that is held between steps for the cache of tiles."""
    if _extension is not None:
        _extension.release_kept_memory()


# Constants, for torch.compile too.
_CUDA_ARCHITECTURES = build_info().get("cuda_architectures", "")


def cuda_architectures() -> str:
    """Return the architectures of GPUs built for, like "8.0,9.0+PTX", "" without CUDA."""
    return _CUDA_ARCHITECTURES


def has_code_for(capability: tuple[int, int]) -> bool:
    """Return whether the extension has code for GPUs of a compute capability.

    The code of an architecture runs on later GPUs of its generation, with +PTX on all later ones,
    and that of one with an "a" on no other.
    """
    for name in cuda_architectures().split(","):
        number, _, is_portable = name.partition("+")
        major, _, minor = number.rstrip("af").partition(".")
        if not minor:
            continue
        known = (int(major), int(minor))
        reaches_later = not number.endswith("a") and (is_portable or known[0] == capability[0])
        if known == capability or (known < capability and reaches_later):
            return True
    return False
