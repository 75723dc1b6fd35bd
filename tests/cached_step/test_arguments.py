"""What `cached_step` refuses, in a sentence."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from step_models import IN, OUT, Encoder, Lambda, N, images
from torch import nn

from spcl_fast.cached_step import cached_step


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(OUT), nn.SyncBatchNorm(OUT)])
def test_batch_norm_raises(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(IN, OUT), nn.Sequential(norm))
    call = partial(cached_step, model, images()[0], lambda z: z.sum())
    with pytest.raises(ValueError, match=r"got \w*BatchNorm\w* '1.0' in training mode: call its"):
        call(chunk=5)
    assert model[0].weight.grad is None
    model.eval()
    call(chunk=5)
    assert model[0].weight.grad is not None
    without = nn.Sequential(nn.Linear(IN, OUT), nn.BatchNorm1d(OUT, track_running_stats=False))
    with pytest.raises(ValueError, match="batch statistics"):
        cached_step(without.eval(), images()[0], lambda z: z.sum(), chunk=5)


def test_raises() -> None:
    model, (x,) = nn.Linear(IN, OUT), images()
    for bad, error, message in (
        (0, ValueError, "chunk must be at least 1, got 0"),
        (2.0, TypeError, "chunk must be an int, got float"),
        (True, TypeError, "chunk must be an int, got bool"),
    ):
        with pytest.raises(error, match=message):
            cached_step(model, x, torch.sum, chunk=bad)  # type: ignore[arg-type]
    for batch, got in (("x", "str"), ((x, 3), "tuple of Tensor, int"), ({}, "dict of nothing")):
        with pytest.raises(TypeError, match=f"batch must be a tensor, or .* got {got}"):
            cached_step(model, batch, torch.sum, chunk=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"batch must have tensors of the same number of rows"):
        cached_step(model, (x, x[1:]), torch.sum, chunk=4)
    with pytest.raises(ValueError, match=r"batch must have tensors of the same number of rows"):
        cached_step(model, torch.ones(()), torch.sum, chunk=4)
    for views, message in (
        (lambda z: z.sum(0), r"model must return a row for every row of the batch, got \(4,\) for"),
        (lambda z: torch.cat([z, z]), r"model must return a row for .* got \(8, 4\) for 4 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            cached_step(Lambda(views), x[:, :4], torch.sum, chunk=4)
    with pytest.raises(TypeError, match=r"model must return a tensor, or .* got NoneType"):
        cached_step(Lambda(lambda _: None), x, torch.sum, chunk=4)
    for result, got in ((torch.ones(2), r"\(2,\)"), (3.0, "float")):
        with pytest.raises(TypeError, match=f"loss must return a 0-dim tensor or .* got {got}"):
            cached_step(model, x, lambda _, r=result: r, chunk=4)  # type: ignore[misc]
    with torch.no_grad(), pytest.raises(RuntimeError, match="cached_step must be called with grad"):
        cached_step(model, x, torch.sum, chunk=4)


def test_chunks_of_numpy() -> None:
    model, (x,) = nn.Linear(IN, OUT), images()
    values = [cached_step(model, x, torch.sum, chunk=c) for c in (np.int64(5), 5)]
    assert values[0] == values[1]
    for bad in (np.float64(5), np.bool_(True), torch.tensor(5), "5"):
        with pytest.raises(TypeError, match="chunk must be an int, got"):
            cached_step(model, x, torch.sum, chunk=bad)  # type: ignore[arg-type]


def test_a_static_graph_is_refused() -> None:
    class Static(Encoder):
        static_graph = True

        def no_sync(self) -> Any:
            return nullcontext()

    for chunk in (5, N):
        with pytest.raises(RuntimeError, match="without static_graph=True"):
            cached_step(nn.Sequential(Static()), images()[0], torch.sum, chunk=chunk)
