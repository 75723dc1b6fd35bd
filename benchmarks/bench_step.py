"""How large a batch can a training step have with a dense loss, and with ours?

    python -m benchmarks.bench_step --limit-mib 8192 --json benchmarks/results/cpu/step.json

A step is forward, backward and SGD of a small encoder, 64 -> 128 -> 64 features, and SupCon over
its unit rows, so that the loss dominates the cost. `dense` is the loss as training scripts write it
(benchmarks/providers.py, SupContrast), `swapped` is `spcl_fast.compat.supcontrast`: one import line
apart. Every batch runs in a fresh process whose data may not exceed the limit (RLIMIT_DATA, as
`ulimit -d`). The batch doubles until the step fails or takes longer than `--most-seconds`; if it
fails, the largest batch is found by bisection. After a warm-up of a few rows, the peak is resident
memory above the level with the batch in place; the time is the median of further steps, at least
five if they are short, or the first step if it is long.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._provenance import REPOSITORY, provenance, write_result
from benchmarks.device import Cpu
from benchmarks.measure import weigh_step
from benchmarks.problem import Problem
from benchmarks.providers import supcontrast_loss
from spcl_fast.compat.supcontrast import SupConLoss

MODULE = "benchmarks.bench_step"
LOSSES = ("dense", "swapped")
FEATURES, HIDDEN, DIM, CLASSES, TAU = 64, 128, 64, 64, 0.07
SMALLEST = 1024
LEAST_SECONDS, MOST_SECONDS = 0.5, 8.0  # for the steps of one batch
STEP = 1024  # of the bisection


def main(arguments: list[str] | None = None) -> int:
    """Measure both losses; return the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    args = parse(given)
    if args.measure:
        resource.setrlimit(resource.RLIMIT_DATA, (args.limit_mib * 2**20,) * 2)
        print(json.dumps(measure(args.measure, args.n)))
        return 0
    result: dict[str, Any] = provenance(MODULE, given)
    result["limit_mib"] = args.limit_mib
    result["rows"] = [row for loss in args.loss for row in growing(loss, args)]
    if args.json:
        write_result(args.json, result, append=False)
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--loss", nargs="+", choices=LOSSES, default=LOSSES)
    parser.add_argument("--limit-mib", type=int, default=8192, help="process data")
    parser.add_argument("--most-seconds", type=float, default=60.0, help="per step")
    parser.add_argument("--json", type=Path, help="result file")
    parser.add_argument("--measure", choices=LOSSES, help="measure in this process, print JSON")
    parser.add_argument("--n", type=int, default=SMALLEST, help="rows of --measure, even")
    return parser.parse_args(arguments)


def growing(loss: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the rows of one loss: doubled batches, then the steps of the bisection."""
    fits, n = 0, SMALLEST
    while True:
        row = in_fresh_process(loss, n, args.limit_mib)
        yield row
        if "failed" in row:
            break
        fits = n
        if row["seconds"] > args.most_seconds:
            return
        n *= 2
    fails = n
    while fails - fits > STEP:
        middle = (fits + fails) // 2 // STEP * STEP
        row = in_fresh_process(loss, middle, args.limit_mib)
        yield row
        fits, fails = (fits, middle) if "failed" in row else (middle, fails)


def in_fresh_process(loss: str, n: int, limit_mib: int) -> dict[str, Any]:
    """Return one row: peak and seconds, or how the process failed; and print it."""
    flags = ["--measure", loss, "--n", str(n), "--limit-mib", str(limit_mib)]
    child = subprocess.run(
        [sys.executable, "-m", MODULE, *flags], cwd=REPOSITORY, capture_output=True, text=True
    )
    row: dict[str, Any] = {"loss": loss, "n": n, "one_matrix_mib": n**2 * 4 / 2**20}
    if child.returncode:
        last = child.stderr.strip().splitlines() or [f"exit code {child.returncode}"]
        row["failed"] = last[-1][:120]
        if not any(word in last[-1] for word in ("memory", "allocate", "alloc")):
            raise RuntimeError(f"{loss} must fail for memory at {n} rows, got {last[-1]}")
    else:
        row |= json.loads(child.stdout)
    print(json.dumps(row), flush=True)
    return row


def measure(loss: str, n: int) -> dict[str, float]:
    """Return peak MiB and seconds of a step with `n` rows, two views of n / 2 images."""
    step = training_step(loss, n)
    training_step(loss, SMALLEST)()  # loads what is needed
    first = weigh_step(step, Cpu())
    seconds = [first["seconds"]]
    begin = time.perf_counter()
    most = max(LEAST_SECONDS, 5 * seconds[0])
    while sum(seconds) < MOST_SECONDS and time.perf_counter() - begin < most:
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    later = seconds[1:] or seconds
    return {"peak_mib": first["peak_mib"], "seconds": round(statistics.median(later), 4)}


def training_step(loss: str, n: int) -> Callable[[], object]:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIM))
    optimiser = torch.optim.SGD(encoder.parameters(), lr=0.1)
    images, labels = torch.randn(n, FEATURES), Problem("supcon", n, DIM, CLASSES).labels()
    loss_fn = LOSS_FUNCTIONS[loss]

    def step() -> None:
        optimiser.zero_grad()
        z = nn.functional.normalize(encoder(images), dim=1)
        loss_fn(z, labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def swapped(z: Tensor, labels: Tensor) -> Tensor:
    loss_fn = SupConLoss(temperature=TAU, base_temperature=TAU)
    value: Tensor = loss_fn(torch.stack(z.chunk(2), dim=1), labels[: len(labels) // 2])
    return value


def dense(z: Tensor, labels: Tensor) -> Tensor:
    return supcontrast_loss(z, labels, TAU)


LOSS_FUNCTIONS = {"dense": dense, "swapped": swapped}

if __name__ == "__main__":
    sys.exit(main())
