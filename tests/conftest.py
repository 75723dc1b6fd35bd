"""One thread, memory that starts as NaN, and panels small enough to be many."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


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
