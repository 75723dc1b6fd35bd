"""Planes that lie more than 2^30 elements apart: twice the stride leaves 32 bits."""

from __future__ import annotations

import math
import mmap
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast import pair_lse, positive_pair_loss
from spcl_fast.kernels import _configs
from spcl_fast.testing import make_embeddings, make_labels

STRIDE = 2**30 + 64
NUM_ROWS = 21


def far_apart(empty: Any) -> Any:
    """Return torch.empty with three planes of a matrix far apart, in memory that none touches."""

    def far(*size: Any, **options: Any) -> Tensor:
        shape = torch.Size(size if isinstance(size[0], int) else size[0])
        if len(shape) != 3 or shape[0] != 3 or options["dtype"] != torch.bfloat16:
            usual: Tensor = empty(*size, **options)
            return usual
        num_bytes = 2 * (2 * STRIDE + shape[1] * shape[2])
        memory = torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.bfloat16)
        return memory.as_strided(shape, (STRIDE, shape[2], 1))

    return far


def results(z: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return outputs and gradients of kernels that read three planes and those that write them."""
    found: dict[str, Tensor] = {}
    for gamma in (math.inf, 8.0):
        rows = z.clone().requires_grad_()
        lse = pair_lse(rows, 0.07, impl="triton")
        assert isinstance(lse, Tensor)
        how: Any = {"tau": 0.07, "gamma": gamma, "mode": "linear", "impl": "triton"}
        out = positive_pair_loss(rows, lse, labels, **how)
        (dz,) = torch.autograd.grad(out.loss.sum(), rows)
        found |= {f"loss, {gamma}": out.loss.detach(), f"dz, {gamma}": dz}
    return found


# Rows that a program holds, and longer ones, whose backward has panels.
@pytest.mark.interpreted
@pytest.mark.parametrize("dim", [40, 140])
def test_far_planes(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not _configs.IS_INTERPRETED:
        pytest.skip("needs memory that takes no place")
    torch.set_float32_matmul_precision("highest")
    z, labels = make_embeddings(NUM_ROWS, dim), make_labels(NUM_ROWS, 3)
    expected = results(z, labels)
    monkeypatch.setattr(torch, "empty", far_apart(torch.empty))
    for name, value in results(z, labels).items():
        assert torch.equal(value, expected[name]), name
