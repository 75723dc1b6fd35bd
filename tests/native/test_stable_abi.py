"""The extension for CPUs takes nothing from PyTorch but its stable ABI: a list of C functions."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"


@pytest.fixture(scope="module")
def undefined() -> dict[str, str]:
    """The kinds, w for what may be missing, of what other libraries must have, by name."""
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    spec = importlib.util.find_spec("spcl_fast._C")
    assert spec is not None
    assert spec.origin is not None
    if not spec.origin.endswith(".abi3.so"):
        pytest.skip("needs an extension of the limited API, on a system with .so files")
    command = ["nm", "--dynamic", "--undefined-only", spec.origin]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = (line.split() for line in printed.splitlines())
    return {name.partition("@")[0]: kind for kind, name in lines}


def test_nothing_of_pytorch_is_mangled(undefined: dict[str, str]) -> None:
    mangled = [name for name in undefined if re.match(r"_ZN?K?(2at|3c10|5torch)", name)]
    assert mangled == []
    assert "torch_library_impl" in undefined


# As csrc/cpu/cache_memory.cpp says: of PyTorch 2.11 and later.
def test_what_an_older_pytorch_lacks_is_optional(undefined: dict[str, str]) -> None:
    optional = [name for name, kind in undefined.items() if kind == "w" and "torch" in name]
    assert optional == ["torch_from_blob"]


def test_no_header_of_another_abi_is_included() -> None:
    files = [CSRC / "module.cpp", *(CSRC / "cpu").iterdir()]
    included = {x for file in files for x in re.findall(r"#include <(\S+)>", file.read_text())}
    of_torch = {x for x in included if x.startswith(("ATen", "c10", "torch", "pybind11"))}
    assert {x for x in of_torch if not re.match(r"torch/(csrc/stable|headeronly)/", x)} == set()
    assert len(of_torch) > 2
