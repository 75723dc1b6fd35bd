"""The extension module, if it is there.

It is loaded here and not on first use: torch.compile sees a constant then, not an import.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from types import ModuleType


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


def build_info() -> dict[str, str]:
    """Return facts about the build by name: torch, compiler, cpu_kernels; empty if not built."""
    return {} if _extension is None else dict(_extension.build_info())


def release_kept_memory() -> None:
    """Free the memory that is held between steps for kept tiles."""
    if _extension is not None:
        _extension.release_kept_memory()
