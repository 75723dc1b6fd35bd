"""The kernels run on a GPU where there is one, else in Triton's interpreter on CPU tensors."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent
sys.path.append(str(FOLDER))  # modules that its tests share
HAS_TRITON = importlib.util.find_spec("triton") is not None
# How kernels run on CPU tensors, if not as ../conftest.py has it: "interp", or an emulator's name.
MODE = os.environ.get("SPCL_KERNEL_DRIVER", "")
IS_EMULATED = MODE.startswith("emu")


class ModuleWithoutTriton(pytest.Module):
    def collect(self) -> Iterable[pytest.Item]:
        pytest.skip("needs triton", allow_module_level=True)


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> ModuleWithoutTriton | None:
    if HAS_TRITON or module_path.parent != FOLDER:
        return None
    return ModuleWithoutTriton.from_parent(parent, path=module_path)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpucheck_fault: a kernel must fault where it is emulated")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent != FOLDER:
            continue
        item.add_marker(pytest.mark.gpu)
        if IS_EMULATED and {"breadth", "interpreted"} & set(item.keywords):
            item.add_marker(pytest.mark.skip(reason="for the interpreter and for GPUs"))


@pytest.fixture(autouse=True)
def _no_launches_of_before() -> None:
    """Let nothing be repeated that another test has launched, with other blocks or a fault."""
    if HAS_TRITON:
        from spcl_fast.kernels import _replay

        _replay._tapes.clear()


@pytest.fixture(autouse=True)
def _default_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def device() -> str:
    """Where the tensors of a kernel lie."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def is_emulated() -> bool:
    """Whether kernels run instruction by instruction, so that sizes must be small."""
    return IS_EMULATED
