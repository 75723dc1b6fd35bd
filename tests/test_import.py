"""The package imports with torch alone, quickly, and says what it would run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import spcl_fast
from spcl_fast import native
from spcl_fast.info import describe

ROOT = Path(spcl_fast.__file__).parents[1]

COLD_IMPORT = """
import sys, time
for name in ("triton", "monai", "nibabel", "scipy", "matplotlib", "jinja2", "tyro", "rich"):
    sys.modules[name] = None
import torch
start = time.perf_counter()
import spcl_fast, spcl_fast.pacing, spcl_fast.info
elapsed = time.perf_counter() - start
out = spcl_fast.SelfPacedContrastiveLoss()(torch.eye(4).repeat(2, 1), torch.arange(4).repeat(2))
assert out.num_anchors.item() == 8
assert not any(name.startswith(("spcl_fast.data", "spcl_fast.train")) for name in sys.modules)
print(elapsed)
"""


def run(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_cold_import_needs_torch_alone_and_is_quick() -> None:
    seconds = min(float(run("-c", COLD_IMPORT)) for _ in range(2))
    assert seconds < 0.2


def test_public_names_exist() -> None:
    assert all(hasattr(spcl_fast, name) for name in spcl_fast.__all__)
    assert spcl_fast.__version__.count(".") == 2


def test_info() -> None:
    facts = describe()
    assert facts["spcl_fast"] == spcl_fast.__version__
    assert facts["auto on cpu"] == ("native" if native.is_built() else "chunked")
    printed = run("-m", "spcl_fast.info")
    assert all(name in printed and value in printed for name, value in facts.items())
