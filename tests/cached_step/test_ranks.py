"""`cached_step` under DistributedDataParallel: one communication, in the last chunk."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from step_models import LABELS, Encoder, N, Towers, gradients, images
from torch.nn.parallel import DistributedDataParallel

from spcl_fast import InfoNCELoss, SupConLoss
from spcl_fast.cached_step import cached_step

RANKS = (slice(0, 7), slice(7, N))


def rank_step(rank: int, folder: Path) -> None:
    """Step on half a batch, in chunks whose number differs between the ranks."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    torch.set_num_threads(1)
    save_steps(rank, folder)
    # DDP modules must be gone: the last owner of a group waits for gloo's thread, which may need
    # the GIL that the owner holds
    torch.distributed.destroy_process_group()


def save_steps(rank: int, folder: Path) -> None:
    model = DistributedDataParallel(Encoder(0.0))
    loss = DistributedDataParallel(SupConLoss(0.2, learnable_tau=True))
    reduced: list[int] = []

    def hook(_, bucket):  # type: ignore[no-untyped-def]
        reduced.append(1)
        future = torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
        return future.then(lambda f: f.value()[0] / 2)

    model.register_comm_hook(None, hook)
    rows = RANKS[rank]
    for chunk in (3, 6):  # 3 and 2 chunks, then 2 and 1
        reduced.clear()
        model.zero_grad()
        loss.zero_grad()
        cached_step(model, images()[0][rows], lambda z: loss(z, LABELS[rows]), chunk=chunk)
        assert len(reduced) == 1, reduced
        torch.save(gradients(model.module, loss.module), folder / f"{rank} {chunk}")


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    if not torch.distributed.is_gloo_available():
        pytest.skip("needs gloo")
    # this file as a program, which forks the ranks
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, str(tmp_path)]
    subprocess.run(command, env=environment, check=True, timeout=120)
    model, loss = Encoder(0.0), SupConLoss(0.2, learnable_tau=True)
    for rows in RANKS:
        (loss(model(images()[0][rows]), LABELS[rows]).loss / 2).backward()
    expected = gradients(model, loss)
    for path in tmp_path.glob("[01] *"):
        torch.testing.assert_close(torch.load(path), expected)
    assert len(list(tmp_path.glob("[01] *"))) == 4


def test_no_sync_reaches_the_towers() -> None:
    entered = []

    class Wrapped(Encoder):
        def no_sync(self) -> Any:
            entered.append(self)
            return nullcontext()

    model = Towers()
    model.left, model.right = Wrapped(), Wrapped()
    cached_step(model, images(2), lambda z: InfoNCELoss()(*z), chunk=5)
    assert len(entered) == 2 * (1 + 2)  # without a graph, and all chunks but the last


if __name__ == "__main__":
    importlib.import_module("torch._dynamo")  # or else every rank imports it
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=rank_step, args=(rank, Path(sys.argv[1])), daemon=True)
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in processes))
