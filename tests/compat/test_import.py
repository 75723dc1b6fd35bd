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
import spcl_fast
print([x for x in sys.modules if "compat" in x and "spcl" in x])
for name in "{MODULES}".split():
    importlib.import_module("spcl_fast.compat." + name)
print("imported")
"""


def test_imports_without_the_originals_and_not_with_the_package() -> None:
    command = [sys.executable, "-c", WITHOUT_ORIGINALS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nimported\n"
