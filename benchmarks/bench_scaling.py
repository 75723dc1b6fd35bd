"""Strong scaling: how does the time of a step over one batch fall with the number of ranks?

    python -m benchmarks.bench_scaling --json benchmarks/results/cpu/scaling.json

The same N rows on 1 and on more processes of one thread each (gloo, one machine), forward and
backward of a loss with group=. Reported are the median time of the slowest rank; the CPU time of
the busiest rank, which other load on the machine does not affect; the multiply-adds of the busiest
rank's log-sum-exps; and those of its own rows against all rows. For the numbers of ranks in
--counted, multiply-adds are counted without running.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks._provenance import provenance, write_result
from benchmarks.problem import Kind, Problem
from spcl_fast import SelfPacedContrastiveLoss
from spcl_fast.distributed.contrastive_rows import blocks_of

MODULE = "benchmarks.bench_scaling"
KINDS: tuple[Kind, ...] = ("supcon", "self-paced")


def main(arguments: list[str] | None = None) -> int:
    """Measure every number of ranks; return the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    args = parse(given)
    torch.set_num_threads(1)
    result: dict[str, Any] = provenance(MODULE, given)
    result["rows"] = []
    for kind in args.problem:
        alone: dict[str, float] = {}
        for world in args.ranks:
            problem = Problem(kind, args.n, args.dim, args.classes)
            times = time_ranks(problem, world, args.rounds)
            alone = alone or times
            row = {"problem": kind, "n": args.n, "dim": args.dim, "ranks": world, "threads": 1}
            row |= times | counts(args.n, args.dim, world)
            row["speedup"] = round(alone["time_ms"] / times["time_ms"], 3)
            row["processor_speedup"] = round(alone["processor_ms"] / times["processor_ms"], 3)
            print(json.dumps(row), flush=True)
            result["rows"].append(row)
    result["counted"] = [
        {"n": args.n, "dim": args.dim, "ranks": world} | counts(args.n, args.dim, world)
        for world in args.counted
    ]
    if args.json:
        write_result(args.json, result, append=False)
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description=__doc__.splitlines()[0]
    )
    several: dict[str, Any] = {"nargs": "+", "metavar": "X"}
    parser.add_argument("--problem", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--ranks", type=int, default=[1, 2], help="must start with 1", **several)
    parser.add_argument("--counted", type=int, default=[1, 2, 4, 8, 64, 1024], **several)
    parser.add_argument("--n", type=int, default=8192, help="rows of all ranks")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--classes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="result file")
    args = parser.parse_args(arguments)
    if args.ranks[0] != 1:
        parser.error(f"--ranks must begin with 1, got {args.ranks[0]}")
    return args


def counts(num_rows: int, dim: int, world: int) -> dict[str, int]:
    """Return the multiply-adds of the busiest rank's log-sum-exps, forward and backward.

    A pair of rows takes 4 D: its similarity twice, and its part of two gradients.
    """
    most = 0
    for rank in range(world):
        blocks = blocks_of(num_rows, world, rank)
        pairs = blocks.own * (blocks.own - 1) // 2
        pairs += sum((b - a) * (d - c) for (a, b), (c, d) in blocks.rectangles)
        most = max(most, pairs)
    against_all = -(-num_rows // world) * (num_rows - 1)
    return {"multiply_adds": 4 * dim * most, "against_all_rows": 4 * dim * against_all}


def time_ranks(problem: Problem, world: int, rounds: int) -> dict[str, float]:
    """Return median and percentiles in ms of the slowest rank in each round."""
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meet"
        processes = [
            context.Process(target=_rank, args=(problem, rank, world, meeting, rounds, answers))
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("every rank must finish, got exit codes of failures")
    everyone = [answers.get() for _ in processes]
    slowest, busiest = (
        [max(times) for times in zip(*(answer[k] for answer in everyone), strict=True)]
        for k in range(2)
    )
    fifths = statistics.quantiles(slowest, n=5, method="inclusive")
    return {
        "time_ms": round(statistics.median(slowest), 3),
        "p20_ms": round(fifths[0], 3),
        "p80_ms": round(fifths[-1], 3),
        "processor_ms": round(statistics.median(busiest), 3),
        "rounds": rounds,
    }


def _rank(problem: Problem, rank: int, world: int, meeting: str, rounds: int, answers: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    rows = slice(problem.n * rank // world, problem.n * (rank + 1) // world)
    z, labels = problem.embeddings()[rows].requires_grad_(), problem.labels()[rows]
    loss = SelfPacedContrastiveLoss(problem.tau, group=dist.group.WORLD)
    times, processor_times = [], []
    for _ in range(rounds + 2):  # two to warm up
        dist.barrier()
        start, processor_start = time.perf_counter(), time.process_time()
        loss(z, labels, problem.gamma).loss.backward()
        times.append(1e3 * (time.perf_counter() - start))
        processor_times.append(1e3 * (time.process_time() - processor_start))
        z.grad = None
    answers.put((times[2:], processor_times[2:]))
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
