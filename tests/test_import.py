"""The package imports with torch alone, quickly, and says what it would run."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import spcl_fast
from spcl_fast import native
from spcl_fast.info import describe, main

ROOT = Path(spcl_fast.__file__).parents[1]

NEW_GRID = "spcl_fast.segmentation.data.grid"

COLD_IMPORT = """
import sys, time
start = time.process_time()
for name in ("monai", "nibabel", "scipy", "matplotlib", "jinja2", "tyro", "rich"):
    sys.modules[name] = None
import torch
of_torch = time.process_time()
import spcl_fast, spcl_fast.pacing, spcl_fast.info
share = (time.process_time() - of_torch) / (of_torch - start)
assert "triton" not in sys.modules  # asked for alone, where it is
sys.modules["triton"] = None
out = spcl_fast.SelfPacedContrastiveLoss()(torch.eye(4).repeat(2, 1), torch.arange(4).repeat(2))
assert out.num_anchors.item() == 8
assert not any(name.startswith("spcl_fast.segmentation") for name in sys.modules)
print(share)
"""


TRITON_IS_MISSING = """
import sys, torch
sys.modules["triton"] = None
import spcl_fast, spcl_fast.info
from spcl_fast.ops._impl import resolve
assert resolve("auto", torch.device("cuda")) == "chunked"
facts = spcl_fast.info.describe()
assert facts["triton"] == "not installed"
assert "triton" not in facts["implementations"]
try:
    spcl_fast.pair_lse(torch.ones(3, 2), 0.1, impl="triton")
except RuntimeError as error:
    print(error)
"""

TRITON_IS_OLD = """
import sys, types, torch
sys.modules["triton"] = types.ModuleType("triton")
sys.modules["triton"].__version__ = "3.2.0"
sys.modules["triton"].__spec__ = types.SimpleNamespace()
from spcl_fast.ops._impl import resolve
assert resolve("auto", torch.device("cuda")) == "chunked"
try:
    resolve("triton", torch.device("cuda"))
except RuntimeError as error:
    print(error)
"""


def run(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_cold_import_needs_torch_alone_and_is_quick() -> None:
    assert float(run("-c", COLD_IMPORT)) < 0.15  # of the time on the CPU that torch takes: a ratio


def test_without_triton_auto_is_chunked_and_triton_raises() -> None:
    assert "impl='triton' needs triton, which is not installed" in run("-c", TRITON_IS_MISSING)
    assert run("-c", TRITON_IS_OLD) == "impl='triton' needs triton 3.6 or later, got 3.2.0\n"


def test_the_folder_of_the_kernels_is_no_package_of_its_own() -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        run("-c", "import kernels")
    assert "ImportError: the folder kernels/ is the package spcl_fast.kernels" in error.value.stderr


def test_the_documented_path_of_image_to_grid_works_for_one_release() -> None:
    sys.modules.pop("spcl_fast.data.grid", None)
    with pytest.warns(DeprecationWarning, match=r"is now spcl_fast\.segmentation\.data\.grid"):
        former = importlib.import_module("spcl_fast.data.grid")
    assert former.image_to_grid is importlib.import_module(NEW_GRID).image_to_grid


def test_public_names_exist() -> None:
    assert all(hasattr(spcl_fast, name) for name in spcl_fast.__all__)
    assert spcl_fast.__version__.count(".") == 2


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    facts = describe()
    assert facts["spcl_fast"] == spcl_fast.__version__
    assert facts["auto on cpu"] == ("native" if native.is_built() else "chunked")
    assert ("native on cpu" in facts["implementations"]) == native.is_built()
    has_triton = importlib.util.find_spec("triton") is not None
    assert facts["auto on cuda"] == ("triton" if has_triton else "chunked")
    assert facts["triton"].startswith(version("triton") if has_triton else "not installed")
    main()
    printed = capsys.readouterr().out
    assert all(name in printed and value in printed for name, value in facts.items())
