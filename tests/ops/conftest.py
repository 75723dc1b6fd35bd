"""Tests by implementation: triton runs on the GPU where there is one, else interpreted."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _device_of_the_implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    call = getattr(request.node, "callspec", None)
    if call is None or call.params.get("impl") != "triton":
        yield
        return
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs triton")
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        yield
