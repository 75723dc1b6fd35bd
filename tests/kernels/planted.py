"""Modules of kernels/hopper with a fault in their text."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from spcl_fast.kernels.hopper import _choice


def plant(name: str, folder: Path, old: str, new: str) -> ModuleType:
    """Return a module of kernels/hopper with a fault in its text."""
    path = Path(_choice.__file__).with_name(f"{name}.py")
    text = path.read_text(encoding="utf-8")
    assert not old or text.count(old) == 1, f"{old} must occur once, got {text.count(old)} times"
    text = text.replace(old, new)
    if name != "pair_sums":  # where a group then reads three words of its arguments as four
        # Sums are bounded: the other loop need not be compiled.
        text = text.replace("if bounded != 0:", "if True:")
    file = folder / f"{name}.py"
    file.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"planted_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
