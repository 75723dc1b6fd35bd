"""Time and memory of our contrastive losses, compared with dense PyTorch and other libraries.

    python -m benchmarks --json benchmarks/results/cpu/losses.json
    python -m benchmarks --device cuda --dtype float32 bfloat16
    python -m benchmarks --device cuda --quick

Forward and backward of the losses of benchmarks/problem.py by every provider that runs here
(benchmarks/providers.py, benchmarks/peers.py): checked against float64, then timed in turns in one
process. Peak memory is that of a fresh process on a CPU, and of the allocator on a GPU. The rate in
GF/s counts 4 N^2 D flops, or 8 N M D for N x M pairs; the device's best matrix product, and on a
GPU the copy bandwidth, are timed in the same rounds. On a GPU the default result file is
benchmarks/results/NAME/losses.json. --quick is what `make gpu` runs: the lists of QUICK, varied one
at a time, few runs, and a table at the end; then bench_kernels, bench_training and bench_host. Exit
code 1 if one of our providers is refused, 2 without such a device.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks import bench_training
from benchmarks._provenance import REPOSITORY, provenance, write_result
from benchmarks.compare import Comparison, Limits, Row, facts
from benchmarks.device import DEVICES, Device
from benchmarks.device_table import render
from benchmarks.gate import MOST_ROWS
from benchmarks.peers import PEERS
from benchmarks.problem import Dtype, Kind, Problem
from benchmarks.providers import ALL, ONE_LABEL, OURS, PROVIDERS

LIBRARIES = ("pytorch-metric-learning", "lightly", "monai")
PRECISIONS = ("highest", "high", "medium")
# The first of every list is the centre.
QUICK: dict[str, Any] = {
    "dtype": ["bfloat16", "float32"],
    "problem": ["self-paced", "meta-labels", "supcon", "bank", "clip", "siglip"],
    "n": [16384, 60, 1024, 4096, 65536],
    "dim": [128, 256, 512],
    "rounds": 3,
    "checked_rows": 4096,
    "star": True,
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0]
    )
    several: dict[str, Any] = {"nargs": "+", "metavar": "X"}
    sizes = [32, 60, 256, 1024, 4096, 8192, 16384, 65536]
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--dtype", nargs="+", choices=get_args(Dtype), default=["float32"])
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="highest", help="float32 products on a GPU"
    )
    parser.add_argument("--problem", nargs="+", choices=get_args(Kind), help="on a GPU: all")
    parser.add_argument("--provider", nargs="+", choices=PROVIDERS, help="default: all")
    parser.add_argument("--n", type=int, default=sizes, help="rows, 32 to 65536", **several)
    parser.add_argument("--dim", type=int, default=[128], help="features of a row", **several)
    parser.add_argument("--classes", type=int, default=[64], help="number of classes", **several)
    parser.add_argument("--tau", type=float, default=[0.07], help="temperature", **several)
    threads = [torch.get_num_threads()]
    parser.add_argument("--threads", type=int, default=threads, help="CPU threads", **several)
    parser.add_argument("--gamma", type=float, default=1.5, help="pace in units of log(N - 1)")
    parser.add_argument("--refs", type=int, default=65536, help="references of bank")
    parser.add_argument("--star", action="store_true", help="vary one list at a time")
    parser.add_argument("--no-memory", action="store_true", help="measure time only")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each provider")
    parser.add_argument("--checked-rows", type=int, default=MOST_ROWS, help="rows to check")
    parser.add_argument("--memory-mib", type=float, help="memory limit per provider")
    parser.add_argument("--step-s", type=float, default=30, help="time limit per step")
    parser.add_argument("--json", type=Path, help="result file")
    parser.add_argument("--append", action="store_true", help="add to the result file")
    parser.add_argument("--quick", action="store_true", help="a few sizes of every kind")
    if parser.parse_args(arguments).quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args(arguments)
    if args.provider is None:
        args.provider = [name for name, one in PROVIDERS.items() if args.device in one.devices]
    if args.problem is None:
        args.problem = ONE_LABEL if args.device == "cpu" else ALL
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; return the exit code."""
    args = parse(arguments)
    given = sys.argv[1:] if arguments is None else list(arguments)
    device = DEVICES[args.device]()
    if lack := device.lacks():
        print(lack, file=sys.stderr)
        return 2
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(args.precision)
    try:
        return compare(args, device, given)
    finally:
        torch.set_float32_matmul_precision(before)


def compare(args: argparse.Namespace, device: Device, given: list[str]) -> int:
    """Compare, print and write; return the exit code."""
    providers = {name: PROVIDERS[name] for name in args.provider}
    limits = Limits(args.memory_mib or device.memory_mib(), args.step_s)
    comparison = Comparison(
        limits,
        args.rounds,
        providers,
        device,
        weighs=not args.no_memory,
        checked_rows=args.checked_rows,
    )
    problems = [
        (Problem(kind, n, dim, classes, tau, args.gamma, args.refs, dtype, device.where), threads)
        for dtype, threads, kind, dim, classes, tau, n in grid(args)
    ]
    # meta-labels has its own classes
    problems = list({str(facts(problem, t)): (problem, t) for problem, t in problems}.values())
    path = args.json
    if path is None and device.name != "cpu":
        path = REPOSITORY / "benchmarks" / "results" / device.slug() / "losses.json"
    try:
        for problem, threads in problems:
            for row in comparison.run(problem, threads):
                print(line(row), flush=True)
    except Exception:  # a fault on a GPU ends everything there
        if path is not None and comparison.rows:
            write(path.with_suffix(".partial.json"), comparison, given, append=False)
        raise
    for row in comparison.left_out:
        print(f"{where(row)}: left out, {row['reason']}", file=sys.stderr)
    if path is not None:
        write(path, comparison, given, append=args.append)
        if args.quick:
            print(render(json.loads(path.read_text(encoding="utf-8")), path.name))
            more(args.device, path)
    refused = [row for row in comparison.left_out if row["reason"].startswith("refused")]
    return int(any(row["provider"] in OURS for row in refused))


def more(device: str, path: Path) -> None:
    """Measure kernels, training steps and the host's share of losses, beside the file `path`."""
    rounds = ["--rounds", str(QUICK["rounds"])]

    def to(name: str) -> list[str]:
        return [*rounds, "--json", str(path.with_name(f"{name}.json"))]

    has_triton = importlib.util.find_spec("triton") is not None
    if has_triton:
        importlib.import_module("benchmarks.bench_kernels").main(to("kernels"))
    bench_training.main(["--device", device, *to("training")])
    if has_triton:
        importlib.import_module("benchmarks.bench_host").main(to("host"))


def grid(args: argparse.Namespace) -> list[tuple[Any, ...]]:
    """Return all combinations of the lists; with --star, those that vary at most one list."""
    lists = (args.dtype, args.threads, args.problem, args.dim, args.classes, args.tau, args.n)
    points = list(itertools.product(*lists))
    if not args.star:
        return points
    centre = points[0]
    return [p for p in points if sum(a != b for a, b in zip(p, centre, strict=True)) <= 1]


def where(row: Row) -> str:
    refs = f" M={row['refs']}" if "refs" in row else ""
    classes = str(row["classes"]).replace(" ", "")
    shape = f"N={row['n']}{refs} D={row['dim']} classes={classes} tau={row['tau']:g}"
    dtype = "" if row["dtype"] == "float32" else f"{row['dtype']} "
    return f"{row['problem']:11} {shape} threads={row['threads']} {dtype}{row['provider']}"


def line(row: Row) -> str:
    peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:10,.1f} MiB"
    error = f"{row['grad_error']:9.1e}" if "grad_error" in row else ""
    rate = f"{row['gflops']:8,.1f} GF/s"
    if "mm_share" in row:
        rate = f"{row['gflops'] / 1e3:8,.2f} TF/s"
        rate += f" {row['mm_share']:6.1%} of mm {row['copy_share']:8.2%} of copy"
    return f"{where(row):80}{row['time_ms']:12,.2f} ms{rate}{peak}{error}"


def write(path: Path, comparison: Comparison, arguments: list[str], *, append: bool) -> None:
    """Write the result file."""
    versions = {}
    is_cpu = comparison.device.name == "cpu"
    for name in LIBRARIES if is_cpu else (*LIBRARIES, *PEERS):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    result = provenance("benchmarks", arguments) | comparison.device.facts()
    result |= {"libraries": versions}
    result |= {"rows": comparison.rows, "left_out": comparison.left_out}
    write_result(path, result, append=append)


if __name__ == "__main__":
    sys.exit(main())
