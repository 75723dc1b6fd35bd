"""Random batches against the dense formula: seconds in `make test`, ten minutes in `make fuzz`.

SPCL_FUZZ_SECONDS is how long every test goes on with new batches; without it they are always the
same.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
import torch.distributed as dist
from hypothesis import strategies as st

from spcl_fast import native

sys.path.append(str(Path(__file__).parent))  # the ranks import it by its name
sys.path.append(str(Path(__file__).parents[1] / "distributed"))

fuzz_cases: Any = importlib.import_module("fuzz_cases")
rank_programs: Any = importlib.import_module("rank_programs")

SECONDS = float(os.environ.get("SPCL_FUZZ_SECONDS", "0"))
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
FLOATS = [torch.float64, torch.float32, torch.float16]


def powers(low: float, high: float) -> Any:
    return st.floats(low, high).map(lambda x: 10.0**x)


@st.composite
def cases(draw: Callable[..., Any], impl: str, world: int = 1) -> Any:
    """Draw a batch: no rows, one, several, and more than a tile of the CPU kernels."""
    dtypes = [torch.float32, torch.float16, torch.bfloat16]
    window = draw(st.sampled_from([None, None, 0.0, 0.25, 0.3, 1.0]))
    most = 40 if world > 1 else 150
    size = st.one_of(st.integers(0, 12), st.integers(0, most))
    return fuzz_cases.Case(
        seed=draw(st.integers(0, 2**31)),
        sizes=tuple(draw(size) for _ in range(world)),
        bank=draw(st.one_of(st.none(), st.integers(0, 12))),
        features=draw(st.sampled_from([1, 3, 8, 17, 64])),
        dtype=draw(st.sampled_from(dtypes + [torch.float64] * (impl != "native"))),
        stride=draw(st.sampled_from(["rows", "columns", "every other", "expanded"])),
        norm=draw(st.one_of(st.just(1.0), st.just(0.0), powers(-3, 1.5))),
        copies=draw(st.integers(0, 6)),
        tau=draw(st.one_of(st.just(0.07), st.floats(0.005, 10))),
        learnable=draw(st.booleans()),
        gamma=draw(st.one_of(st.just(torch.inf), powers(-30, 3), st.floats(0.5, 20))),
        gamma_is_tensor=draw(st.booleans()),
        mode=draw(st.sampled_from(["hard", "linear"])),
        label_dtype=draw(st.sampled_from(INTEGERS if window is None else FLOATS + INTEGERS)),
        classes=draw(st.integers(1, 9)),
        window=window,
        impl=impl,
    )


def search(strategy: Any, check: Callable[[Any], None], examples: int) -> None:
    """Check `examples` cases, or as many as SPCL_FUZZ_SECONDS allow."""
    settings = hypothesis.settings(
        max_examples=examples if SECONDS == 0 else 200,
        derandomize=SECONDS == 0,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    test = settings(hypothesis.given(strategy)(check))
    end = time.monotonic() + SECONDS
    test()
    while time.monotonic() < end:
        test()


@pytest.mark.parametrize("impl", ["reference", "chunked", "native"])
def test_one_process(impl: str, request: pytest.FixtureRequest) -> None:
    if impl == "native" and not native.is_built():
        pytest.skip("spcl_fast._C is not built")
    if impl == "chunked":
        request.getfixturevalue("small_panels")
    search(cases(impl), lambda case: fuzz_cases.check(case, fuzz_cases.run(case)), 40)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not dist.is_available() or not dist.is_gloo_available() or sys.platform == "win32":
        pytest.skip("needs gloo and a fork server")
    two = rank_programs.Ranks(2, tmp_path_factory.mktemp("ranks"))
    yield two
    two.close()


def test_two_ranks(ranks: Any) -> None:
    def check(case: Any) -> None:
        results = ranks.run_all(fuzz_cases.run_rank, case)
        whole = results[0]
        # a rank has W times the gradient of its rows, for averaging, and all of the others'
        whole.dz = torch.cat([x.dz.double() / 2 for x in results])
        assert results[1].loss == whole.loss
        fuzz_cases.check(case, whole)

    search(cases("auto", world=2), check, 25)
