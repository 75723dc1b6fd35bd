"""How much memory does a step take beyond its inputs, and does it finish?

    python -m benchmarks.bench_memory --json benchmarks/results/cpu/memory.json

For every combination, forward and backward of the self-paced loss run once in a fresh process; the
result is its peak resident memory above the level with the inputs in place. Exit code 1 beyond the
limit: three N x D matrices, 64 MiB, and the tile cache (native) or the panels (chunked).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks._provenance import REPOSITORY, provenance, write_result
from benchmarks.measure import weigh
from benchmarks.problem import Problem
from benchmarks.providers import Provider, native_with, ours
from spcl_fast.ops import Impl

MODULE = "benchmarks.bench_memory"
FIXED_MIB = 64.0
PANELS_MIB = 64.0  # chunked


def provider_of(impl: Impl, tile_cache_mib: int) -> Provider:
    if impl == "native":
        return Provider(functools.partial(native_with, tile_cache_mib))
    return Provider(functools.partial(ours, impl))


def limit_mib(row: dict[str, Any]) -> float:
    """Return the limit on the memory of a step above its inputs."""
    copies = 3 * int(row["n"]) * int(row["dim"]) * 4 / 2**20
    tiles = float(row["tile_cache_mib"]) if row["impl"] == "native" else PANELS_MIB
    return copies + FIXED_MIB + tiles


def main(arguments: list[str] | None = None) -> int:
    """Measure every combination; return the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    args = parse(given)
    if args.measure:
        (row,) = combinations(args)
        print(json.dumps(measure(row)))
        return 0
    result: dict[str, Any] = provenance(MODULE, given)
    result["rows"] = [in_fresh_process(row) for row in combinations(args)]
    if args.json:
        write_result(args.json, result, append=args.append)
    return int(any(row["peak_mib"] > row["limit_mib"] for row in result["rows"]))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description=__doc__.splitlines()[0]
    )
    several: dict[str, Any] = {"nargs": "+", "metavar": "X"}
    parser.add_argument("--impl", nargs="+", choices=get_args(Impl), default=["native"])
    parser.add_argument("--tile-cache-mib", type=int, default=[0, 256], **several)
    parser.add_argument("--n", type=int, default=[65536], **several)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--classes", type=int, default=64)
    parser.add_argument("--threads", type=int, default=[torch.get_num_threads()], **several)
    parser.add_argument("--json", type=Path, help="result file")
    parser.add_argument("--append", action="store_true", help="add to the result file")
    parser.add_argument("--measure", action="store_true", help="in this process; print JSON")
    return parser.parse_args(arguments)


def combinations(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the combinations to measure; only native has a cache."""
    rows = []
    for n, impl, cache, threads in itertools.product(
        args.n, args.impl, args.tile_cache_mib, args.threads
    ):
        if impl == "native" or cache == args.tile_cache_mib[0]:
            row = {"impl": impl, "tile_cache_mib": cache if impl == "native" else 0, "n": n}
            rows.append(row | {"dim": args.dim, "classes": args.classes, "threads": threads})
    return rows


def measure(row: dict[str, Any]) -> dict[str, float]:
    provider = provider_of(row["impl"], row["tile_cache_mib"])
    problem = Problem("self-paced", row["n"], row["dim"], row["classes"])
    return weigh(provider, problem, row["threads"])


def in_fresh_process(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with its peak, seconds and limits, and print it."""
    flags = [
        text for key, value in row.items() for text in (f"--{key.replace('_', '-')}", str(value))
    ]
    child = subprocess.run(
        [sys.executable, "-m", MODULE, "--measure", *flags],
        cwd=REPOSITORY,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    row = row | json.loads(child.stdout)
    row |= {"one_matrix_mib": row["n"] ** 2 * 4 / 2**20, "limit_mib": limit_mib(row)}
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
