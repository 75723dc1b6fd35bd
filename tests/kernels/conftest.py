"""The kernels run on a GPU where there is one, else in Triton's interpreter on CPU tensors."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent
HAS_TRITON = importlib.util.find_spec("triton") is not None
# How kernels run on CPU tensors, if not as ../conftest.py has it: "interp", or an emulator's name.
MODE = os.environ.get("SPCL_KERNEL_DRIVER", "")
IS_EMULATED = MODE.startswith("emu")
IS_STOCK_INTERPRETER = not MODE and not torch.cuda.is_available()


class ModuleWithoutTriton(pytest.Module):
    def collect(self) -> Iterable[pytest.Item]:
        pytest.skip("needs triton", allow_module_level=True)


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> ModuleWithoutTriton | None:
    if HAS_TRITON or module_path.parent != FOLDER:
        return None
    return ModuleWithoutTriton.from_parent(parent, path=module_path)


def has_bfloat16(value: object) -> bool:
    if isinstance(value, (tuple, list, dict)):
        return any(map(has_bfloat16, value.values() if isinstance(value, dict) else value))
    return value is torch.bfloat16


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent != FOLDER:
            continue
        item.add_marker(pytest.mark.gpu)
        if IS_EMULATED and "breadth" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="breadth is for the interpreter and for GPUs"))
        call = getattr(item, "callspec", None)
        if IS_STOCK_INTERPRETER and call is not None and has_bfloat16(call.params):
            item.add_marker(pytest.mark.skip(reason="this interpreter's bfloat16 dot is wrong"))


@pytest.fixture
def device() -> str:
    """Where the tensors of a kernel lie."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def is_emulated() -> bool:
    """Whether kernels run instruction by instruction, so that sizes must be small."""
    return IS_EMULATED
