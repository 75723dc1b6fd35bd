"""Every loss over a group of ranks is the loss of one process, and so is a step under DDP."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from spcl_fast import native
from spcl_fast.testing import similarity_rounding

if not dist.is_available() or not dist.is_gloo_available() or sys.platform == "win32":
    pytest.skip("needs gloo and a fork server", allow_module_level=True)
sys.path.append(str(Path(__file__).parent))  # the ranks import it by its name

rank_programs: Any = importlib.import_module("rank_programs")
Case = rank_programs.Case

KINDS = [
    "self-paced",
    "self-paced-hard",
    "self-paced-bank",
    "supcon",
    "supcon-bank",
    "ntxent",
    "infonce",
    "infonce-bank",
]


@pytest.fixture(scope="module")
def ranks_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The processes of a group of W ranks, started once."""
    started: dict[int, Any] = {}

    def get(world: int) -> Any:
        if world not in started:
            started[world] = rank_programs.Ranks(world, tmp_path_factory.mktemp("ranks"))
        return started[world]

    yield get
    for ranks in started.values():
        ranks.close()


def layouts(world: int) -> dict[str, Any]:
    """Rows of every rank: equal, ragged, one rank without any, fewer rows than ranks."""
    ragged = tuple(5 + 3 * rank for rank in range(world))
    return {
        "equal": {"sizes": (7,) * world},
        "ragged": {"sizes": ragged},
        "lonely": {"sizes": ragged, "lonely_rank": world - 1},
        "empty": {"sizes": (0, *ragged[1:]) if world > 1 else ragged},
        "few": {"sizes": (0,) * (world - 1) + (3,)},
    }


def compare(case: Any, results: list[Any]) -> None:
    """Assert that all ranks have what one process has, in float64 to 1e-11."""
    tolerance = 1e-11 if case.dtype == torch.float64 else similarity_rounding(1 / 0.2)
    alone = rank_programs.step_alone(case)
    lse = alone["lse"]
    for rank, result in enumerate(results):
        assert result.keys() == alone.keys()
        rows = case.rows_of(rank)
        if case.kind == "ntxent":  # both views of the rows of the rank
            expected_lse = torch.cat([x[rows] for x in lse.chunk(2)])
        else:
            expected_lse = lse[rows]
        for name, expected in (alone | {"lse": expected_lse}).items():
            size = expected.abs().max().item() if expected.numel() else 0.0
            torch.testing.assert_close(
                result[name],
                expected,
                rtol=tolerance,
                atol=tolerance * max(size, 1.0),
                msg=lambda text, name=name, rank=rank: f"{name} of rank {rank}: {text}",
            )


LAYOUTS = list(layouts(1))


# 1: no collectives; 2: no following block; 3: odd; 4: following and opposite blocks.
# float64 to tell a fault from rounding.
@pytest.mark.parametrize(("world", "layout"), [(1, "ragged"), *product((2, 3, 4), LAYOUTS)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_equals_that_of_one_process(
    ranks_of: Any, world: int, layout: str, kind: str
) -> None:
    case = Case(kind, "chunked", torch.float64, **layouts(world)[layout])
    compare(case, ranks_of(world).run_all(rank_programs.step, case))


# Which pairs a rank visits does not depend on who computes them: on four ranks alone, where every
# kind of block is.
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("impl", ["reference", "native"])
def test_a_step_in_float32(ranks_of: Any, layout: str, kind: str, impl: str) -> None:
    if impl == "native" and not native.is_built():
        pytest.skip("spcl_fast._C is not built")
    case = Case(kind, impl, torch.float32, **layouts(4)[layout])
    compare(case, ranks_of(4).run_all(rank_programs.step, case))


# One rank, the first and not the last, needs no gradient: the others get theirs all the same.
@pytest.mark.parametrize("needy", [(True, True, True), (False, True, True), (True, False, False)])
def test_gradients_of_rows_are_w_times_those_of_one_process(
    ranks_of: Any, needy: tuple[bool, ...]
) -> None:
    case = Case("supcon", "chunked", torch.float64, (4, 9, 6))
    parts = ranks_of(3).run_all(rank_programs.gradients_of_rows, case, needy)
    (expected,) = whole_gradients(case)
    for rank, part in enumerate(parts):
        assert (part is not None) == needy[rank]
        if part is not None:
            torch.testing.assert_close(part, 3 * expected[case.rows_of(rank)])


@pytest.mark.skipif(not hasattr(dist, "reduce_scatter_single"), reason="older gloo has none")
def test_gradients_by_reduce_scatter(ranks_of: Any) -> None:
    case = Case("supcon", "chunked", torch.float64, (4, 0, 6))
    parts = ranks_of(3).run_all(rank_programs.gradients_by_reduce_scatter, case)
    (expected,) = whole_gradients(case)
    torch.testing.assert_close(torch.cat(parts), 3 * expected)


def whole_gradients(case: Any) -> tuple[torch.Tensor, ...]:
    x, _, fine, _ = rank_programs.inputs_of(case)
    z = x.clone().requires_grad_()
    loss = rank_programs.SupConLoss(0.2, impl=case.impl)(z, fine).loss
    return torch.autograd.grad(loss, z)


def test_half_precision(ranks_of: Any) -> None:
    case = Case("self-paced", "chunked", torch.float32, (6, 11))
    parts = ranks_of(2).run_all(rank_programs.half_precision, case, True)
    loss, dz = rank_programs.half_precision(0, 1, case, False)
    for rank, (part_loss, part_dz) in enumerate(parts):
        torch.testing.assert_close(part_loss, loss)
        assert part_dz.dtype == torch.bfloat16
        # summed in float32 and rounded once, as dz
        torch.testing.assert_close(part_dz, 2 * dz[case.rows_of(rank)], rtol=1e-2, atol=1e-4)


def test_a_group_of_some_ranks(ranks_of: Any) -> None:
    case = Case("ntxent", "auto", torch.float64, (4, 6))
    outsider, *parts = ranks_of(3).run_all(rank_programs.in_a_subgroup, case)
    x = rank_programs.inputs_of(case)[0]
    expected = rank_programs.NTXentLoss(0.2)(x, x + 0.1).loss
    assert "group must hold this process" in outsider
    for part in parts:
        torch.testing.assert_close(part, expected)


# What differs is said on every rank: numbers, dtypes and sizes are exchanged before the rows are.
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("dtypes", "labels must be of the same dtypes on all ranks, got int64 int64, int32 int32"),
        ("number", "labels must be of the same dtypes on all ranks, got int64 int64, int64, by"),
        ("tau", "all ranks must give as many features"),
        ("bank", "all ranks must give as many features"),
    ],
)
def test_ranks_that_differ(how: str, message: str, ranks_of: Any) -> None:
    for answer in ranks_of(2).run(rank_programs.other_labels, how):
        assert answer.kind == "ValueError", answer.text
        assert message in answer.text


# One process gives 0 without pairs, and so do the ranks.
@pytest.mark.parametrize("num_rows", [0, 1])
@pytest.mark.parametrize("kind", ["self-paced", "infonce"])
def test_few_rows(num_rows: int, kind: str, ranks_of: Any) -> None:
    for answer in ranks_of(2).run_all(rank_programs.few_rows, num_rows, kind):
        assert answer == pytest.approx((0.0, 0.0), abs=1e-6)


# A tensor of one element is contiguous whatever its strides, and a view as bytes reads them.
def test_rows_with_gaps(ranks_of: Any) -> None:
    losses = ranks_of(2).run_all(rank_programs.rows_with_gaps)
    assert losses == pytest.approx([0.0, 0.0], abs=1e-5)


def test_ranks_that_differ_all_raise(ranks_of: Any) -> None:
    for answer in ranks_of(2).run(rank_programs.other_widths):
        assert answer.kind == "ValueError"
        assert "all ranks must give as many features" in answer.text


def test_second_derivatives_raise(ranks_of: Any) -> None:
    for answer in ranks_of(2).run(rank_programs.second_derivative):
        assert answer.kind == "RuntimeError"
        assert "second derivative" in answer.text


# 24 rows: 6, 8, 12 a block of 4, 3, 2 ranks, so that shares are equal to the row.
@pytest.mark.parametrize("world", [2, 3, 4])
def test_every_rank_visits_its_share_of_the_pairs(ranks_of: Any, world: int) -> None:
    case = Case("supcon", "chunked", torch.float32, (24, *(0,) * (world - 1)))
    visited = ranks_of(world).run_all(rank_programs.count_pairs, case)
    assert visited == [24**2 // world] * world


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_is_far_below_a_share_of_the_matrix(ranks_of: Any) -> None:
    # 8192 rows: half of a float32 matrix takes 128 MiB, the embeddings 0.2 MiB.
    case = Case("supcon", "chunked", torch.float32, (4096, 4096))
    assert all(0 <= x < 40 for x in ranks_of(2).run_all(rank_programs.peak_mib, case))


# The other ranks must not wait for ever: the group's timeout here is 1 s.
@pytest.mark.parametrize("how", ["dies", "is silent", "calls no backward"])
def test_a_failing_rank_is_an_error_for_the_others(tmp_path: Path, how: str) -> None:
    ranks = rank_programs.Ranks(2, tmp_path, timeout_s=1)
    try:
        answer = ranks.run(rank_programs.one_rank_fails, how)[0]
    finally:
        ranks.close()
    assert answer.kind == "RuntimeError"
    assert answer.seconds < 2.5  # and not when the other rank comes back, after 3 s
