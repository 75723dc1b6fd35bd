"""How long to search, and what every loss draws."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from spcl_fast import native

SECONDS = float(os.environ.get("SPCL_FUZZ_SECONDS", "0"))
DTYPES = [torch.float32, torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
FLOATS = [torch.float64, torch.float32, torch.float16]
# Interpreted kernels take a second for what the others do in milliseconds.
EXAMPLES = {"reference": 100, "chunked": 100, "native": 100, "triton": 3}
MOST_ROWS = {"reference": 150, "chunked": 150, "native": 150, "triton": 40}


def powers(low: float, high: float) -> Any:
    return st.floats(low, high).map(lambda x: 10.0**x)


def rows(impl: str) -> dict[str, Any]:
    """Return strategies of what rows are, whatever their loss."""
    return {
        "seed": st.integers(0, 2**31),
        "features": st.sampled_from([1, 3, 8, 17, 64]),
        "dtype": st.sampled_from(
            DTYPES + [torch.float64] * (impl not in ("native", "triton", "auto"))
        ),
        "stride": st.sampled_from(["rows", "columns", "every other", "expanded"]),
        "norm": st.one_of(*[st.just(1.0)] * 3, st.just(0.0), powers(-3, 1.5)),
        "copies": st.integers(0, 6),
        "tau": st.one_of(st.just(0.07), st.floats(0.005, 10)),
        "learnable": st.booleans(),
        "impl": st.just(impl),
    }


def numbers_of_rows(most: int) -> Any:
    """Draw no rows, one, several, and more than a tile of the CPU kernels."""
    return st.one_of(st.integers(0, 12), st.integers(0, most))


def search(strategy: Any, check: Callable[[Any], None], examples: int, share: float = 1.0) -> None:
    """Check `examples` cases, or as many as a share of SPCL_FUZZ_SECONDS allows."""
    settings = hypothesis.settings(
        max_examples=examples if SECONDS == 0 else 5 * examples,
        derandomize=SECONDS == 0,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate] + [hypothesis.Phase.shrink] * (examples > 5),
    )
    test = settings(hypothesis.given(strategy)(check))
    end = time.monotonic() + SECONDS * share
    test()
    while time.monotonic() < end:
        test()


def prepare(impl: str, request: pytest.FixtureRequest) -> None:
    """Skip what is not here, and cut small batches too."""
    if impl == "native" and not native.is_built():
        pytest.skip("spcl_fast._C is not built")
    if impl == "triton":
        pytest.importorskip("triton")
    if impl == "chunked":
        request.getfixturevalue("small_panels")
