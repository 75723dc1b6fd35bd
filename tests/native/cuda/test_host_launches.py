"""What steps of the CUDA ops launch, and their memory, by the log of the ops on the host."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

TAU, GAMMA = 0.07, 12.0
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.fixture
def _memory_is_not_written() -> None:
    """As for users; a device would launch something to write it, and most is never computed."""
    torch.use_deterministic_algorithms(False)


class Log(NamedTuple):
    """What one call asked of a device."""

    products: int
    launches: int
    """Of kernels, products and operators."""
    mib: float
    """Memory at the peak, above the inputs."""


# Operators that are views, take memory, read a number of the host, or call others that count.
FREE = ("empty", "empty_strided", "empty_like", "item", "_local_scalar_dense")
FREE += ("as_strided", "narrow", "slice", "select", "t", "transpose", "unsqueeze")
FREE += ("to", "_to_copy", "contiguous", "clone")


def launches_one(event: Any) -> bool:
    """Return whether an operator launches something, and none that calls it does."""
    name = event.name.removeprefix("aten::")
    if name == event.name or name in FREE:
        return False
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith("aten::") and parent.name.removeprefix("aten::") not in FREE:
            return False
        parent = parent.cpu_parent
    return True


def logged(ops: Any, call: Callable[[], Any]) -> Log:
    """Return what `call` asks of a device, where nothing is computed."""
    ops.start_log(True)
    try:
        with torch.profiler.profile() as profile:
            call()
        products, kernels, peak = ops.read_log()
    finally:
        ops.start_log(False)
    operators = sum(launches_one(event) for event in profile.events())
    return Log(products, products + kernels + operators, peak / 2**20)


def self_paced(ops: Any, N: int, D: int, dtype: torch.dtype, num_labels: int) -> list[Log]:
    """Return what forward and backward of `contrastive_rows` ask for."""
    z, row, tau = torch.empty(N, D, dtype=dtype), torch.empty(N), scalar(TAU)
    labels = [torch.empty(N, dtype=torch.int64) for _ in range(num_labels)]
    gamma, how = [scalar(GAMMA)] * num_labels, ([-1.0] * num_labels, False)
    order = torch.empty(num_labels * 3 * (-(-N // 4) * 4), dtype=torch.int32)
    gradient = (z, row, row, tau, labels, [row] * num_labels, gamma, *how, order)
    forward = logged(ops, lambda: ops.contrastive_rows_fwd(z, tau, labels, gamma, *how))
    return [forward, logged(ops, lambda: ops.contrastive_rows_bwd(*gradient))]


# What few panels save: launches forward and backward of one label. One panel is multiplied once
# forward, and its gradient is one product of the dtype of the rows. Of several, a panel takes two
# products and four kernels forward, a product, a kernel and one or two products backward.
PANELS = {60: 1, 1024: 1, 4096: 1, 4224: 2, 8192: 2, 16384: 5, 32768: 15, 65536: 51}


@pytest.mark.usefixtures("_memory_is_not_written")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", list(PANELS))
def test_launches_and_memory(ops: Any, N: int, dtype: torch.dtype) -> None:
    panels, is_sorted = PANELS[N], N > 8192
    labels, dims = (1, 3, 8), (8, 128, 512)
    # of many panels, which take long, each of them once
    cases = product(labels, dims) if N <= 16384 else zip(labels, dims, strict=True)
    for num_labels, D in cases:
        forward, backward = self_paced(ops, N, D, dtype, num_labels)
        assert forward.products == (1 if panels == 1 else 2 * panels)
        assert backward.products <= 3 * panels - 1
        # a count of the labels, or a sort and a search
        assert forward.launches == forward.products + 4 * panels + num_labels * (1 + is_sorted)
        # float16 takes the range of its gradients, and sums of half precision are rounded
        more = 2 if dtype == torch.float16 else int(dtype == torch.bfloat16 and panels > 1)
        assert backward.launches == backward.products + panels + more
        bound = 3 * N * D * 4 / 2**20 + 320
        assert max(forward.mib, backward.mib) <= bound, (D, num_labels)
    assert panels <= 64


# References: the log-sum-exps of both sides, and a label against a bank.
@pytest.mark.usefixtures("_memory_is_not_written")
@pytest.mark.parametrize("dtype", DTYPES)
def test_launches_with_references(ops: Any, dtype: torch.dtype) -> None:
    N, M, tau = 512, 65536, scalar(TAU)
    z, refs = torch.empty(N, 128, dtype=dtype), torch.empty(M, 128, dtype=dtype)
    row, col = torch.empty(N), torch.empty(M)
    labels, ref_labels = torch.empty(N, dtype=torch.int64), torch.empty(M, dtype=torch.int64)
    is_half = dtype == torch.float16
    lse = logged(ops, lambda: ops.pair_lse_fwd(z, refs, tau, 0))
    assert lse[:2] == (1, 3)
    towers = (z, refs, row, col, row, col, tau, torch.empty(0), [], [], [], True, True)
    assert logged(ops, lambda: ops.pair_lse_bwd(*towers))[:2] == (3, 7 if is_half else 4)
    pairs = (z, row, labels, refs, ref_labels, tau, scalar(GAMMA), False, None)
    assert logged(ops, lambda: ops.positive_pair_loss_fwd(*pairs))[:2] == (1, 5)
    bank = logged(ops, lambda: ops.positive_pair_loss_bwd(row, *pairs, True, False))
    assert bank[:2] == (2, 7 if is_half else 5)


# What makes a step dear: a copy of rows, a sum that is not where it is needed.
@pytest.mark.usefixtures("_memory_is_not_written")
def test_the_log_sees_a_copy(ops: Any) -> None:
    z = torch.empty(128, 64)
    rows, columns = (
        logged(ops, lambda x=x: ops.pair_lse_fwd(x, None, scalar(TAU), 0))
        for x in (z, z.t().contiguous().t())
    )
    assert columns.launches == rows.launches + 1
