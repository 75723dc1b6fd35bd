"""One thread, memory that starts as NaN, small panels, and kernels interpreted without a GPU."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
KERNELS = Path(__file__).parent / "kernels"  # its tests need no GPU

# SPCL_KERNEL_DRIVER names another way to run kernels on CPU tensors, which has set itself up.
if not torch.cuda.is_available() and os.environ.get("SPCL_KERNEL_DRIVER", "interp") == "interp":
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
    if importlib.util.find_spec("triton") is not None:
        sys.path.append(str(Path(__file__).parent))
        import interpreter

        interpreter.repair()

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
gc.disable()  # while tests are imported


def pytest_collection_finish() -> None:
    """Let no later collection of garbage look at what has been imported: that stays."""
    gc.enable()
    gc.freeze()


# What makes the host wait for a device: reading a value, or a shape that depends on values.
WAITS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique",
    "unique_",
    "bincount",
    "equal",
)


class ForbidWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        assert not name.startswith(WAITS), f"{name} waits for the device"
        if name.startswith(("index", "_index")):
            indices = args[1] if isinstance(args[1], (list, tuple)) else []
            assert all(i is None or i.dtype != torch.bool for i in indices), "mask indexing waits"
        return func(*args, **kwargs or {})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords and item.path.parent != KERNELS:
            item.add_marker(skip)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say whether the tests on real volumes ran."""
    skipped = terminalreporter.stats.get("skipped", [])
    missing = sum("real volumes" in str(report.longrepr) for report in skipped)
    terminalreporter.write_line(f"real volumes: {'absent' if missing else 'read'} at {REAL_DATA}")


@pytest.fixture
def real_data() -> Path:
    """The folder of real volumes; a test that needs it is skipped without it."""
    if not REAL_DATA.is_dir():
        pytest.skip("needs real volumes in ../shared/data")
    return REAL_DATA


@pytest.fixture(autouse=True)
def _fresh_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def small_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make some ten panels of a matrix of 67 rows."""
    from spcl_fast.chunked import _panels

    monkeypatch.setattr(_panels, "PANEL_ELEMENTS", {"cpu": 300})
    monkeypatch.setattr(_panels, "PANEL_ELEMENTS_ELSEWHERE", 300)
    monkeypatch.setattr(_panels, "MIN_PANEL_ROWS", 3)
    monkeypatch.setattr(_panels, "MIN_INTERVAL_ROWS", 5)


@pytest.fixture
def no_host_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the ops take the path of an accelerator, whose values the host does not see."""
    from spcl_fast import class_sums
    from spcl_fast.chunked import _positives

    for module in (class_sums, _positives):
        monkeypatch.setattr(module, "is_host", lambda _device: False)


@pytest.fixture
def forbid_waiting() -> type[ForbidWaiting]:
    """A context in which every operator that makes the host wait for a device fails."""
    return ForbidWaiting
