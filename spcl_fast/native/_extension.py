"""The extension modules, where they are there and run with this PyTorch.

spcl_fast._C has the ops on CPUs and runs with every PyTorch since OLDEST_TORCH, spcl_fast._C_cuda
has those on GPUs and runs with the PyTorch that it was built with. They are loaded here and not on
first use: torch.compile sees a constant then, not an import.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

OLDEST_TORCH = "2.10"  # of setup.py
_NOT_BUILT = Path(__file__).parents[1] / "not_built.txt"  # of setup.py


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(x) for x in version.split(".")[:2])


def _load(name: str, lack: str) -> tuple[ModuleType | None, str]:
    """Return the module or None, and why it does not load though it is installed, else ""."""
    if importlib.util.find_spec(name) is None:
        return None, ""
    if not lack:
        try:
            return importlib.import_module(name), ""
        except ImportError as error:
            lack = f"is installed but does not load: {error}"
    warnings.warn(f"{name} {lack}", stacklevel=2)
    return None, f"{name} {lack}"


def _load_cpu() -> tuple[ModuleType | None, str]:
    fits = _release(torch.__version__) >= _release(OLDEST_TORCH)
    lack = "" if fits else f"needs PyTorch {OLDEST_TORCH} or later, got {torch.__version__}"
    module, reason = _load("spcl_fast._C", lack)
    if module is not None:
        module.use_cpu_capability(torch.backends.cpu.get_cpu_capability())
    return module, reason


def _load_cuda() -> tuple[ModuleType | None, str]:
    if _extension is None:
        return None, ""
    built_with = _extension.build_info()["torch"]
    fits = _release(torch.__version__) == _release(built_with)
    lack = "" if fits else f"was built with PyTorch {built_with}, got {torch.__version__}"
    return _load("spcl_fast._C_cuda", lack)


_extension, _WHY_NOT_LOADED = _load_cpu()
_IS_BUILT = _extension is not None
_cuda, _WHY_NO_CUDA = _load_cuda()


def is_built() -> bool:
    """Return whether the extension is installed and loads."""
    return _IS_BUILT


def why_not_built() -> str:
    """Return why there is no extension that loads, "" where that is not known."""
    if _WHY_NOT_LOADED or not _NOT_BUILT.is_file():
        return _WHY_NOT_LOADED
    return _NOT_BUILT.read_text(encoding="utf-8").strip()


def why_not_on_cuda() -> str:
    """Return why the extension for GPUs does not load though it is installed, else ""."""
    return _WHY_NO_CUDA


def build_info() -> dict[str, str]:
    """Return facts about the build by name, empty if not built.

    torch, compiler and cpu_kernels; built with CUDA, cuda and cuda_architectures too.
    """
    modules = [module for module in (_extension, _cuda) if module is not None]
    return {name: fact for module in modules for name, fact in module.build_info().items()}


def call(op: Callable[..., Any], *arguments: Any) -> Any:
    """Return `op(*arguments)`, or raise what the handler of a signal raised meanwhile.

    The op ends with a RuntimeError then, and Python raises where the next function starts.
    """
    if torch.compiler.is_compiling():
        return op(*arguments)
    try:
        return op(*arguments)
    except RuntimeError:
        _start()
        raise


def _start() -> None:
    pass


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
