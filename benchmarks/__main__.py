"""What do contrastive losses cost in time and memory, here against what people use today?

    python -m benchmarks --json benchmarks/results/cpu/losses.json

Forward and backward of the losses of benchmarks/problem.py by every provider that runs here
(benchmarks/providers.py): checked against float64, timed in turns in one process, weighed in a
fresh one. The rate in GF/s counts 4 N^2 D flops, of a bank 8 N M D; where it can be told, the best
of the machine's own sgemm stands beside it. Exit code 1 if one of ours is refused.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks._provenance import provenance, write_result
from benchmarks.compare import Comparison, Limits, Row, facts
from benchmarks.gate import MOST_ROWS
from benchmarks.problem import Kind, Problem
from benchmarks.providers import ONE_LABEL, OURS, PROVIDERS

LIBRARIES = ("pytorch-metric-learning", "lightly", "monai")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0]
    )
    several: dict[str, Any] = {"nargs": "+", "metavar": "X"}
    sizes = [32, 60, 256, 1024, 4096, 8192, 16384, 65536]
    parser.add_argument("--problem", nargs="+", choices=get_args(Kind), default=ONE_LABEL)
    parser.add_argument("--provider", nargs="+", choices=PROVIDERS, default=list(PROVIDERS))
    parser.add_argument("--n", type=int, default=sizes, help="rows, 32 to 65536", **several)
    parser.add_argument("--dim", type=int, default=[128], help="features of a row", **several)
    parser.add_argument("--classes", type=int, default=[64], help="labels", **several)
    parser.add_argument("--tau", type=float, default=[0.07], help="temperature", **several)
    threads = [torch.get_num_threads()]
    parser.add_argument("--threads", type=int, default=threads, help="of PyTorch", **several)
    parser.add_argument("--gamma", type=float, default=1.5, help="of self-paced, over log(N - 1)")
    parser.add_argument("--refs", type=int, default=65536, help="references of bank")
    parser.add_argument("--star", action="store_true", help="vary one of the lists at a time")
    parser.add_argument("--no-memory", action="store_true", help="measure time only")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each, in turns")
    parser.add_argument("--checked-rows", type=int, default=MOST_ROWS, help="against float64")
    parser.add_argument("--memory-mib", type=float, default=8192, help="limit of a provider")
    parser.add_argument("--step-s", type=float, default=30, help="limit of a provider")
    parser.add_argument("--json", type=Path, help="result file")
    parser.add_argument("--append", action="store_true", help="to the result file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; return the exit code."""
    args = parse(arguments)
    given = sys.argv[1:] if arguments is None else list(arguments)
    providers = {name: PROVIDERS[name] for name in args.provider}
    limits = Limits(args.memory_mib, args.step_s)
    comparison = Comparison(
        limits, args.rounds, providers, weighs=not args.no_memory, checked_rows=args.checked_rows
    )
    problems = [
        (Problem(kind, n, dim, classes, tau, args.gamma, args.refs), threads)
        for threads, kind, dim, classes, tau, n in grid(args)
    ]
    # meta-labels has its own classes
    problems = list({str(facts(problem, t)): (problem, t) for problem, t in problems}.values())
    for problem, threads in problems:
        for row in comparison.run(problem, threads):
            print(line(row), flush=True)
    for row in comparison.left_out:
        print(f"{where(row)}: left out, {row['reason']}", file=sys.stderr)
    if args.json:
        write(args.json, comparison, given, append=args.append)
    refused = [row for row in comparison.left_out if row["reason"].startswith("refused")]
    return int(any(row["provider"] in OURS for row in refused))


def grid(args: argparse.Namespace) -> list[tuple[Any, ...]]:
    """Return all combinations of the lists, or those that leave the first in one list only."""
    lists = (args.threads, args.problem, args.dim, args.classes, args.tau, args.n)
    points = list(itertools.product(*lists))
    if not args.star:
        return points
    centre = points[0]
    return [p for p in points if sum(a != b for a, b in zip(p, centre, strict=True)) <= 1]


def where(row: Row) -> str:
    refs = f" M={row['refs']}" if "refs" in row else ""
    classes = str(row["classes"]).replace(" ", "")
    shape = f"N={row['n']}{refs} D={row['dim']} classes={classes} tau={row['tau']:g}"
    return f"{row['problem']:11} {shape} threads={row['threads']} {row['provider']}"


def line(row: Row) -> str:
    peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:10,.1f} MiB"
    error = f"{row['grad_error']:9.1e}" if "grad_error" in row else ""
    rate = f"{row['gflops']:8,.1f} GF/s"
    return f"{where(row):80}{row['time_ms']:12,.2f} ms{rate}{peak}{error}"


def write(path: Path, comparison: Comparison, arguments: list[str], *, append: bool) -> None:
    """Write the result file."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    result = provenance("benchmarks", arguments) | {"libraries": versions}
    result |= {"rows": comparison.rows, "left_out": comparison.left_out}
    write_result(path, result, append=append)


if __name__ == "__main__":
    sys.exit(main())
