"""The ranks of test_distributed.py: each writes the largest differences of ours and theirs."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from conftest import load_lightly, load_open_clip

from spcl_fast.compat.lightly import NTXentLoss
from spcl_fast.compat.open_clip import ClipLoss
from spcl_fast.testing import make_embeddings

Loss = Callable[..., Tensor]


def step(loss: Loss, rank: int, world: int) -> list[Tensor]:
    """Return the mean loss and the gradients of two layers and a scale, averaged as DDP does."""
    layers = [make_embeddings(6, 4, seed=k).double().requires_grad_() for k in (1, 2)]
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    rows = [make_embeddings(5, 6, seed=10 * rank + k).double() for k in (3, 4)]
    z = [torch.nn.functional.normalize(x @ w, dim=1) for x, w in zip(rows, layers, strict=True)]
    value = loss(*z, scale)
    gradients = torch.autograd.grad(value, [*layers, scale], allow_unused=True)
    results = [value.detach(), *(x for x in gradients if x is not None)]
    for x in results:
        dist.all_reduce(x)
    return [x / world for x in results]


def difference(ours: Loss, theirs: Loss, rank: int, world: int) -> float:
    pairs = zip(step(ours, rank, world), step(theirs, rank, world), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def without_scale(loss: Any) -> Loss:
    return lambda a, b, _scale: loss(a, b)


def main(rank: int, world: int, folder: Path) -> None:
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
    results = {}
    clip = load_open_clip()
    for local in (False, True):
        for with_grad in (False, True):
            options: Any = {"local_loss": local, "gather_with_grad": with_grad}
            options |= {"rank": rank, "world_size": world}
            results[f"open_clip {local} {with_grad}"] = difference(
                ClipLoss(**options), clip(**options), rank, world
            )
    with pytest.MonkeyPatch.context() as monkeypatch:
        lightly = load_lightly(monkeypatch)
        options = {"temperature": 0.2, "gather_distributed": True}
        results["lightly"] = difference(
            without_scale(NTXentLoss(**options)), without_scale(lightly(**options)), rank, world
        )
    ours = NTXentLoss(0.2, (23, 4), gather_distributed=True)
    ours(*(make_embeddings(3, 4, seed=rank).requires_grad_() for _ in range(2)))
    stored = torch.cat([make_embeddings(3, 4, seed=k) for k in range(world)])
    results["bank"] = (ours.memory_bank.bank[: 3 * world] - stored).abs().max().item()
    (folder / f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    size = int(sys.argv[1])
    processes = [
        fork.Process(target=main, args=(rank, size, Path(sys.argv[2])), daemon=True)
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in processes))
