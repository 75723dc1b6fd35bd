"""The replacements import without what they replace, and only when they are asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import spcl_fast

ROOT = Path(spcl_fast.__file__).parents[1]
ORIGINALS = "pytorch_metric_learning lightly monai open_clip torchvision loguru"
MODULES = "lightly monai open_clip pytorch_metric_learning spcl supcontrast"

WITHOUT_ORIGINALS = f"""
import importlib, sys
for name in "{ORIGINALS}".split():
    sys.modules[name] = None
for name in "{MODULES}".split():
    importlib.import_module("spcl_fast.compat." + name)
print("imported")
"""


def run(program: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_imports_without_the_originals() -> None:
    assert run(WITHOUT_ORIGINALS) == "imported\n"


def test_the_package_does_not_import_them() -> None:
    program = (
        "import sys, spcl_fast\nprint([x for x in sys.modules if 'compat' in x and 'spcl' in x])"
    )
    assert run(program) == "[]\n"
