"""Random batches against the dense formula: seconds in `make test`, ten minutes in `make fuzz`.

SPCL_FUZZ_SECONDS is how long all tests together go on with new batches; without it they are always
the same.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent))  # the ranks import it by its name
sys.path.append(str(Path(__file__).parents[1] / "distributed"))

fuzz_cases: Any = importlib.import_module("fuzz_cases")
fuzz_infonce: Any = importlib.import_module("fuzz_infonce")
fuzz_search: Any = importlib.import_module("fuzz_search")
fuzz_y_aware: Any = importlib.import_module("fuzz_y_aware")
rank_programs: Any = importlib.import_module("rank_programs")

IMPLS = list(fuzz_search.EXAMPLES)
FLOATS, INTEGERS = fuzz_search.FLOATS, fuzz_search.INTEGERS


@st.composite
def paced(draw: Callable[..., Any], impl: str, world: int = 1) -> Any:
    """Draw a batch of the self-paced loss."""
    window = draw(st.sampled_from([None, None, 0.0, 0.25, 0.3, 1.0]))
    size = fuzz_search.numbers_of_rows(40 if world > 1 else fuzz_search.MOST_ROWS[impl])
    first = draw(st.sampled_from([0, 0, 20_260_101, 2**60 if window is None else 20_260_101]))
    dtypes = INTEGERS if window is None else FLOATS + INTEGERS
    if first:  # what float32 does not tell apart
        dtypes = [torch.int64] if window is None else [torch.int64, torch.int32, torch.float64]
    kinds = st.sampled_from(dtypes)
    batches = st.lists(st.integers(0, 9), max_size=4).map(tuple)
    queue = draw(st.one_of(st.none(), st.none(), batches))
    what = {name: draw(x) for name, x in fuzz_search.rows(impl).items()}
    gamma = st.one_of(*[st.just(torch.inf)] * 2, fuzz_search.powers(-30, 3), st.floats(0.5, 20))
    is_close = draw(st.integers(0, 5)) == 0
    if is_close:  # pairs whose loss is 0 but for rounding, and a pace to which that is much
        what.update(tau=0.005, norm=1.0, copies=6)
        gamma = fuzz_search.powers(-30, -3)
    return fuzz_cases.Case(
        **what,
        sizes=tuple(draw(size) for _ in range(world)),
        bank=draw(
            st.one_of(st.none(), st.integers(0, 12)) if queue is None else st.integers(1, 12)
        ),
        queue=queue,
        gamma=draw(gamma),
        gamma_is_tensor=draw(st.sampled_from([False, False, True])),
        mode="linear" if is_close else draw(st.sampled_from(["hard", "linear"])),
        label_dtype=draw(kinds),
        bank_label_dtype=draw(kinds),
        classes=1 if is_close else draw(st.integers(1, 9)),
        first_class=first,
        window=window,
    )


@st.composite
def pairs(draw: Callable[..., Any], impl: str, world: int = 1) -> Any:
    """Draw a batch of InfoNCE."""
    size = fuzz_search.numbers_of_rows(30 if world > 1 else fuzz_search.MOST_ROWS[impl])
    return fuzz_infonce.Case(
        **{name: draw(x) for name, x in fuzz_search.rows(impl).items()},
        sizes=tuple(draw(size) for _ in range(world)),
        others=draw(st.one_of(st.just(0), st.integers(0, 12))),
        symmetric=draw(st.booleans()),
    )


@st.composite
def continuous(draw: Callable[..., Any], impl: str) -> Any:
    """Draw a batch of the y-aware loss."""
    return fuzz_y_aware.Case(
        **{name: draw(x) for name, x in fuzz_search.rows(impl).items()},
        size=draw(fuzz_search.numbers_of_rows(fuzz_search.MOST_ROWS[impl])),
        sigma=draw(st.one_of(st.just(0.1), fuzz_search.powers(-3, 2))),
        label_dtype=draw(st.sampled_from(FLOATS + INTEGERS)),
        first_label=draw(st.sampled_from([0.0, 20_260_101.0])),
    )


LOSSES: dict[str, tuple[Any, Any]] = {
    "self-paced": (paced, fuzz_cases),
    "infonce": (pairs, fuzz_infonce),
    "y-aware": (continuous, fuzz_y_aware),
}
# of SPCL_FUZZ_SECONDS: the self-paced loss has the most that may go wrong
SHARES = {"self-paced": 0.12, "infonce": 0.05, "y-aware": 0.03}


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", list(LOSSES))
def test_one_process(name: str, impl: str, request: pytest.FixtureRequest) -> None:
    fuzz_search.prepare(impl, request)
    strategy, loss = LOSSES[name]
    examples = fuzz_search.EXAMPLES[impl]
    fuzz_search.search(
        strategy(impl), lambda case: loss.check(case, loss.run(case)), examples, SHARES[name]
    )


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

    fuzz_search.search(paced("auto", world=2), check, 25, 0.15)


def test_pairs_of_two_ranks(ranks: Any) -> None:
    def check(case: Any) -> None:
        results = ranks.run_all(fuzz_infonce.run_rank, case)
        whole, sizes = results[0], case.sizes
        whole.danchors = torch.cat([x.danchors.double() / 2 for x in results])
        own = [x.drefs[:n].double() / 2 for x, n in zip(results, sizes, strict=True)]
        whole.drefs = torch.cat([*own, whole.drefs[sizes[0] :].double()])
        assert results[1].loss == whole.loss
        fuzz_infonce.check(case, whole)

    fuzz_search.search(pairs("auto", world=2), check, 10, 0.05)
