"""Host time of a training step on a GPU, measured without one: launches of kernels are left out.

    python -m benchmarks.bench_host --json benchmarks/results/cpu/host.json

A step of ours, forward and backward with impl="triton", on CPU tensors with everything but the
driver's launch in place, in turns with eager dense PyTorch of the same loss with its own operators
on the CPU, of so few rows that these take next to no time. Gradients are None before a step, as
after `optimizer.zero_grad()`. Microseconds of CPU time, medians; one thread.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from benchmarks._provenance import provenance, write_result
from spcl_fast import InfoNCELoss, SelfPacedContrastiveLoss, SupConLoss
from spcl_fast.kernels import _configs, _tape
from spcl_fast.ops import _impl, _triton
from spcl_fast.ops._impl import Impl

TAU, GAMMA = 0.07, 8.0
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of rows, those of another tower, labels


class Launcher:
    """Stands for a compiled kernel, whose launches do nothing and are counted."""

    launches: Iterator[int] = itertools.count()

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        """Return what launches."""
        return self._launch

    def _launch(self, *args: Any) -> None:
        next(self.launches)


def _hopper(_device: torch.device) -> int:
    return 90


def _addresses(_device: torch.device) -> Callable[[Tensor], int]:
    return Tensor.data_ptr


def _yes() -> bool:
    return True


@contextmanager
def without_launches() -> Iterator[None]:
    """Let kernels take CPU tensors, compiled for an H100 as it were, and do nothing."""
    launcher = Launcher()

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> Launcher:
        next(launcher.launches)
        return launcher

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(JITFunction, "run", run))
        stack.enter_context(mock.patch.object(_configs, "architecture", _hopper))
        stack.enter_context(mock.patch.object(_triton, "_runs_on_cpu", _yes))
        stack.enter_context(mock.patch.object(_tape, "begins_at", _addresses))
        stack.enter_context(mock.patch.dict(_impl._fusing))
        yield


def dense(z: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Return the self-paced loss as one would write it in eager PyTorch."""
    sim = z @ z.T / TAU
    eye = torch.eye(len(z), dtype=torch.bool, device=z.device)
    lse = sim.masked_fill(eye, -torch.inf).logsumexp(1)
    loss = lse[:, None] - sim
    positive = (labels[:, None] == labels) & ~eye
    weight = (1 - loss.detach() / gamma).clamp(0, 1) * positive
    count = positive.sum(1)
    rows = (weight * loss).sum(1) / count.clamp_min(1)
    return rows.sum() / (count > 0).sum().clamp_min(1)


def dense_supcon(z: Tensor, labels: Tensor) -> Tensor:
    """Return the supervised contrastive loss."""
    sim = z @ z.T / TAU
    eye = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_prob = sim - sim.masked_fill(eye, -torch.inf).logsumexp(1, keepdim=True)
    positive = (labels[:, None] == labels) & ~eye
    count = positive.sum(1)
    rows = -(log_prob * positive).sum(1) / count.clamp_min(1)
    return rows.sum() / (count > 0).sum().clamp_min(1)


def dense_clip(anchors: Tensor, refs: Tensor) -> Tensor:
    """Return the loss of CLIP."""
    sim = anchors @ refs.T / TAU
    target = torch.arange(len(sim), device=sim.device)
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(sim, target) + cross_entropy(sim.T, target)) / 2


def ours() -> dict[str, Loss]:
    """Return our losses by the name of the problem."""
    impl: Impl = "triton"
    paced, supcon = SelfPacedContrastiveLoss(TAU, impl=impl), SupConLoss(TAU, impl=impl)
    infonce = InfoNCELoss(TAU, impl=impl)
    return {
        "self-paced": lambda z, _r, y: paced(z, y, GAMMA).loss,
        "supcon": lambda z, _r, y: supcon(z, y).loss,
        "infonce": lambda z, r, _y: infonce(z, r).loss,
    }


DENSE: dict[str, Loss] = {
    "self-paced": lambda z, _r, y: dense(z, y, GAMMA),
    "supcon": lambda z, _r, y: dense_supcon(z, y),
    "infonce": lambda z, r, _y: dense_clip(z, r),
}


def microseconds(loss: Loss, rows: Sequence[Tensor], labels: Tensor, repeats: int) -> float:
    """Return the median time of a step, with two towers of `rows`."""
    z, refs = (x.clone().requires_grad_() for x in rows)
    times = []
    for _ in range(repeats):
        z.grad = refs.grad = None
        start = time.process_time()
        loss(z, refs, labels).backward()
        times.append(time.process_time() - start)
    return 1e6 * statistics.median(times)


def measure(num_rows: int, dim: int, rounds: int, repeats: int) -> list[dict[str, Any]]:
    """Return a row a problem, both sides timed in turns."""
    z, refs = torch.nn.functional.normalize(torch.randn(2, num_rows, dim), dim=2)
    wide, half = (z, refs), (z.bfloat16(), refs.bfloat16())
    labels = torch.arange(num_rows) % 6
    rows = []
    for name, loss in ours().items():
        with without_launches():
            microseconds(loss, half, labels, 50)
            before = next(Launcher.launches)
            microseconds(loss, half, labels, 1)
            launches = next(Launcher.launches) - before - 1
        mine, eager = [], []
        for _ in range(rounds):
            with without_launches():
                mine.append(microseconds(loss, half, labels, repeats))
            eager.append(microseconds(DENSE[name], wide, labels, repeats))
        row = {"problem": name, "n": num_rows, "dim": dim, "launches": launches}
        row |= {"host_us": statistics.median(mine), "dense_us": statistics.median(eager)}
        ratios = [a / b for a, b in zip(mine, eager, strict=True)]
        rows.append(row | {"ratio": statistics.median(ratios)})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_host", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--n", type=int, default=60, help="rows")
    parser.add_argument("--dim", type=int, default=128, help="features")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=100, help="steps of a round")
    parser.add_argument("--json", type=Path, help="result file")
    options = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = measure(options.n, options.dim, options.rounds, options.repeats)
    torch.set_num_threads(threads)
    for row in rows:
        times = "{host_us:7.0f} us of host, dense {dense_us:7.0f} us, ratio {ratio:.2f}"
        print(("{problem:11s} " + times + ", {launches} launches").format(**row))
    if options.json:
        given = sys.argv[1:] if arguments is None else list(arguments)
        write_result(
            options.json,
            {**provenance("benchmarks.bench_host", given), "threads": 1, "rows": rows},
            append=False,
        )


if __name__ == "__main__":
    main()
