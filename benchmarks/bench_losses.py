"""What do time and memory of the self-paced loss cost against dense PyTorch?

    python -m benchmarks.bench_losses --json benchmarks/results/cpu/losses.json

Forward and backward of SelfPacedContrastiveLoss (linear, finite gamma, 64 classes, float32).
Providers run interleaved in one process, medians of the rounds; peak memory above the inputs is
taken in a fresh process each. `products` is `S = z @ z.T; S @ z`, the two products that dense code
cannot avoid. A provider whose loss or gradient is more than twice as wrong as dense float32 against
float64 is refused.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._provenance import REPOSITORY, provenance
from benchmarks.bench_chunked_memory import status_mib
from spcl_fast import SelfPacedContrastiveLoss
from spcl_fast.ops import Impl
from spcl_fast.pacing import relative_gamma
from spcl_fast.testing import assert_within_budget, make_embeddings, make_labels

MODULE = "benchmarks.bench_losses"
NUM_CLASSES = 64


def loss_step(impl: Impl) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return a step that gives the loss and the gradient of z."""
    loss_fn = SelfPacedContrastiveLoss(tau=0.07, mode="linear", impl=impl)

    def step(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        loss = loss_fn(z, labels, gamma=relative_gamma(1.5, len(z))).loss
        loss.backward()
        assert z.grad is not None
        return loss.detach(), z.grad

    return step


def products(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    similarity = z @ z.T
    return similarity[0, 0], similarity @ z


PROVIDERS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "dense": loss_step("reference"),
    "products": products,
    "chunked": loss_step("chunked"),
}


def check(name: str, z: Tensor, labels: Tensor) -> None:
    """Refuse to time a provider that is wrong."""
    if name in ("dense", "products"):
        return
    truth = PROVIDERS["dense"](z.double(), labels)
    for actual, dense, exact, what in zip(
        PROVIDERS[name](z, labels),
        PROVIDERS["dense"](z, labels),
        truth,
        ("loss", "dz"),
        strict=True,
    ):
        assert_within_budget(actual, exact, dense, name=f"{name} {what}")


def time_ms(names: list[str], z: Tensor, labels: Tensor, rounds: int) -> dict[str, float]:
    """Return the median time of each provider, their runs interleaved."""
    times: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(rounds + 1):  # the first round warms up
        for name in names:
            start = time.perf_counter()
            PROVIDERS[name](z, labels)
            if round_:
                times[name].append(time.perf_counter() - start)
    return {name: round(1e3 * statistics.median(values), 3) for name, values in times.items()}


def peak_mib(name: str, num_rows: int, dim: int) -> float:
    """Return the peak resident memory of one step above what the inputs take, in this process."""
    PROVIDERS[name](make_embeddings(64, dim), make_labels(64, 4))
    z, labels = make_embeddings(num_rows, dim), make_labels(num_rows, NUM_CLASSES)
    before = status_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    PROVIDERS[name](z, labels)
    return round(status_mib("VmHWM") - before, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, nargs="+", default=[60, 256, 1024, 4096, 8192])
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", choices=list(PROVIDERS), help="memory of one, in this process")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print(peak_mib(args.peak, args.n[0], args.dim))
        return
    rows: list[dict[str, Any]] = []
    for num_rows in args.n:
        z, labels = make_embeddings(num_rows, args.dim), make_labels(num_rows, NUM_CLASSES)
        for name in PROVIDERS:
            check(name, z, labels)
        times = time_ms(list(PROVIDERS), z, labels, args.rounds)
        for name, milliseconds in times.items():
            flags = ["--peak", name, "--n", str(num_rows), "--dim", str(args.dim)]
            child = subprocess.run(
                [sys.executable, "-m", MODULE, *flags, "--threads", str(args.threads)],
                cwd=REPOSITORY,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            row = {"n": num_rows, "provider": name, "time_ms": milliseconds}
            row |= {
                "peak_mib": float(child.stdout),
                "dense_over_this": times["dense"] / milliseconds,
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    result = provenance(MODULE, sys.argv[1:]) | {"dim": args.dim, "rows": rows}
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
