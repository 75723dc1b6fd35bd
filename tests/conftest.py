"""One thread, memory that starts as NaN, and panels small enough to be many."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
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
    from spcl_fast.chunked import _class_sums, _positives

    for module in (_class_sums, _positives):
        monkeypatch.setattr(module, "is_host", lambda _device: False)
