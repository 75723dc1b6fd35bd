"""Time of the Triton kernels alone: planes, forward sums, backward by rows.

    python -m benchmarks.bench_kernels --json benchmarks/results/NAME/kernels.json

What they read is there before the clock starts: `planes` turns rows into the matrix that all
kernels read, `sums` fills the log-sum-exps from it, and `rows` the gradient from it and the weights
of the rows. Errors of 64 rows are relative to the largest of float64's values. The rate counts two
flops a multiply-add, N^2 D / 2 of them forward and 2 N^2 D backward, whatever the planes; `of mm`
is its share of the best torch.mm in the same dtype and rounds. Exit code 2 without a CUDA device.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._provenance import REPOSITORY, provenance, write_result
from benchmarks.device import DEVICES, Device
from benchmarks.measure import best_rate, time_steps
from spcl_fast.kernels._pair_sums import fill_lse
from spcl_fast.kernels._planes import planes_of
from spcl_fast.kernels._row_weights import row_weights
from spcl_fast.kernels._similarities import PlanePairs
from spcl_fast.kernels.pair_lse import gradient_parts
from spcl_fast.testing import make_embeddings

TAU = 0.07
CHECKED_ROWS = 64
MULTIPLY_ADDS = {"sums": 0.5, "rows": 2.0}  # in units of N^2 D
Row = dict[str, Any]


def measure(n: int, dim: int, dtype: torch.dtype, rounds: int, device: Device) -> list[Row]:
    """Return a row for every kernel at one size."""
    z = make_embeddings(n, dim, dtype=dtype).to(device.where)
    pairs = PlanePairs.of(z, None, TAU)
    lse = torch.empty(n, dtype=torch.float32, device=z.device)
    fill_lse(pairs, lse, None)
    dlse = torch.linspace(0.5, 1.5, n, device=z.device) / n
    weights = row_weights(pairs, lse, dlse, None, None)
    kernels: dict[str, Callable[[], object]] = {
        "planes": functools.partial(planes_of, z),
        "sums": functools.partial(fill_lse, pairs, lse, None),
        "rows": functools.partial(gradient_parts, pairs, weights, dtype),
    }
    dz = gradient_parts(pairs, weights, dtype).sum(0)
    errors = dict(zip(("sums", "rows"), errors_of(z, lse, dlse, dz), strict=True))
    ceilings = device.ceilings(n, dtype)
    with_ceilings = kernels | {name: ceiling.run for name, ceiling in ceilings.items()}
    times = time_steps(with_ceilings, rounds, device)
    mm = best_rate("mm", ceilings, times)
    size: Row = {"n": n, "dim": dim, "dtype": str(dtype).removeprefix("torch.")}
    rows = []
    for name in kernels:
        row = size | {"kernel": name, **times[name]}
        if name in MULTIPLY_ADDS:
            flops = 2 * MULTIPLY_ADDS[name] * n**2 * dim
            row |= {"gflops": round(1e-6 * flops / row["time_ms"], 1), "error": errors[name]}
            row |= {} if mm is None else {"mm_share": round(row["gflops"] / mm, 4)}
        rows.append(row)
    return rows


def errors_of(z: Tensor, lse: Tensor, dlse: Tensor, dz: Tensor) -> tuple[float, float]:
    """Return the largest errors of lse and dz of some rows, by float64."""
    some, every = z[:CHECKED_ROWS].double(), z.double()
    sim = some @ every.T / TAU
    sim.fill_diagonal_(-torch.inf)
    h = (sim - lse[:CHECKED_ROWS, None]).exp() * dlse[:CHECKED_ROWS, None]
    h += (sim - lse).exp() * dlse
    pairs = ((lse, sim.logsumexp(1)), (dz, h @ every / TAU))
    found = [(x[:CHECKED_ROWS] - y).abs().max() / y.abs().max() for x, y in pairs]
    return float(found[0]), float(found[1])


def line(row: Row) -> str:
    size = f"N={row['n']} D={row['dim']} {row['dtype']}"
    rate = f"{row['gflops'] / 1e3:9,.1f} TF/s" if "gflops" in row else ""
    share = f" {row['mm_share']:6.1%} of mm" if "mm_share" in row else ""
    error = f"  error {row['error']:.1e}" if "error" in row else ""
    return f"kernel {row['kernel']:8} {size:32}{row['time_ms']:10,.3f} ms{rate}{share}{error}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_kernels", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--n", type=int, nargs="+", default=[16384, 65536], metavar="X")
    parser.add_argument("--dim", type=int, nargs="+", default=[64, 128, 256], metavar="X")
    dtypes = ["bfloat16", "float32"]
    parser.add_argument("--dtype", nargs="+", choices=[*dtypes, "float16"], default=dtypes)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="result file")
    args = parser.parse_args(arguments)
    device = DEVICES["cuda"]()
    if lack := device.lacks():
        print(lack, file=sys.stderr)
        return 2
    rows = []
    for dtype in args.dtype:
        for n, dim in ((n, dim) for n in args.n for dim in args.dim):
            for row in measure(n, dim, getattr(torch, dtype), args.rounds, device):
                rows.append(row)
                print(line(row), flush=True)
    given = sys.argv[1:] if arguments is None else list(arguments)
    head = provenance("benchmarks.bench_kernels", given) | device.facts()
    folder = REPOSITORY / "benchmarks" / "results" / device.slug()
    write_result(args.json or folder / "kernels.json", head | {"rows": rows}, append=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
