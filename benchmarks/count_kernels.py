"""Count the work of the kernels of spcl_fast/kernels per pair, by executing compiled code.

    KERNEL_EMULATOR=MODULE python -m benchmarks.count_kernels --arch 90 --json FILE

MODULE executes launches on CPU tensors: `install(arch)` makes it Triton's driver, and every launch
appends a dict to `LOG`. Counts at two sizes, multiples of the tiles, are fitted by a N^2 + b N; `a`
is the cost of a pair for many rows, where each program visits all tiles of the rows that it owns.
Exits with status 1 if the matrix products differ from those of the tiling by more than 3 %.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor

from benchmarks._provenance import provenance, write_result
from spcl_fast.kernels import _config_tables as tables
from spcl_fast.kernels import pair_lse as pair_lse_module
from spcl_fast.kernels._configs import Config, dtype_name, pick
from spcl_fast.kernels._pair_lse_pairs import NormedPairs
from spcl_fast.kernels.pair_lse import pair_lse_bwd, pair_lse_fwd
from spcl_fast.kernels.positive_pair_loss import positive_pair_loss_bwd, positive_pair_loss_fwd
from spcl_fast.operands import Label, Lse, Pairs
from spcl_fast.testing import make_embeddings

TAU, SMALL_TAU = 0.07, 0.01  # |sim| is bounded by 1 / tau: the second needs shifted sums
GAMMA = 3.0
SIZES = (512, 1024)  # multiples of all tiles; at least two tiles each way
MOST_DEVIATION = 0.03
COUNTERS: tuple[str, ...] = ("flop_mma", "ex2", "mufu", "gld_bytes", "gst_bytes", "atomics")
COUNTERS += ("bank_conflicts", "sld_conflicts", "sld_wavefronts", "sst_conflicts", "sst_wavefronts")
FACTS = ("regs", "spills", "shared", "occupancy")


@dataclass(frozen=True)
class Pass:
    """One pass over all pairs: how to run it, and what to count."""

    run: Callable[[Tensor, float], object]
    kernel: str
    pick: Callable[[Tensor], Config]
    is_triangular: bool  # tiles on and above the diagonal only
    products: tuple[int, int]  # for a tile, and for one on the diagonal


def _picked(name: str, table: Any) -> Callable[[Tensor], Config]:
    def config(z: Tensor) -> Config:
        return pick(name, table, z.dtype, z.shape[1], z.device)

    return config


def _backward(by_pairs: bool) -> Callable[[Tensor, float], object]:
    def run(z: Tensor, tau: float) -> object:
        lse = torch.full((len(z),), 1 / tau)
        dlse = torch.ones(len(z))
        with mock.patch.object(pair_lse_module, "adds_atomically", return_value=by_pairs):
            pairs = Pairs(z, None, tau)
            return pair_lse_bwd(pairs, Lse(lse, None), dlse, None, needs_z=True, needs_refs=False)

    return run


def _positive(is_forward: bool) -> Callable[[Tensor, float], object]:
    def run(z: Tensor, tau: float) -> object:
        lse, labels = torch.full((len(z),), 1 / tau), torch.zeros(len(z), dtype=torch.int64)
        given: tuple[Any, ...] = (Pairs(z, None, tau), lse, Label(labels, GAMMA), "linear")
        if is_forward:
            return positive_pair_loss_fwd(*given)
        return positive_pair_loss_bwd(lse, *given, needs_z=True, needs_refs=False)

    return run


PASSES = {
    "forward": Pass(
        lambda z, tau: pair_lse_fwd(Pairs(z, None, tau), has_backward=True),
        "pair_sums_kernel",
        _picked("pair_lse_fwd", tables.PAIR_LSE_FORWARD),
        True,
        (1, 1),
    ),
    "backward by rows": Pass(
        _backward(False),
        "row_gradient_kernel",
        _picked("pair_lse_bwd", tables.PAIR_LSE_BY_ROWS),
        False,
        (2, 2),
    ),
    "backward by pairs": Pass(
        _backward(True),
        "both_gradients_kernel",
        _picked("pair_lse_bwd_pairs", tables.PAIR_LSE_BY_PAIRS),
        True,
        (3, 2),
    ),
    "positive pairs, forward": Pass(
        _positive(True),
        "positive_forward_kernel",
        _picked("positive_pair_loss_fwd", tables.POSITIVE_FORWARD),
        False,
        (1, 1),
    ),
    "positive pairs, backward": Pass(
        _positive(False),
        "positive_backward_kernel",
        _picked("positive_pair_loss_bwd", tables.POSITIVE_BACKWARD),
        False,
        (2, 2),
    ),
    "backward, D > 256, h": Pass(
        _backward(False),
        "h_panel_kernel",
        lambda z: pick("pair_lse_bwd_wide", tables.PAIR_LSE_H_PANEL, z.dtype, 64, z.device),
        False,
        (1, 1),
    ),
}
NARROW = tuple(PASSES)[:-1]
PAIR_LSE = NARROW[:3]
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# passes, dtype, D and tau
PROBLEMS: list[tuple[Sequence[str], torch.dtype, int, float]] = [
    (NARROW, BF16, 128, TAU),
    (PAIR_LSE, BF16, 64, TAU),
    (PAIR_LSE, BF16, 256, TAU),
    (PAIR_LSE, FP16, 128, TAU),
    (NARROW, FP32, 128, TAU),
    (PAIR_LSE, BF16, 128, SMALL_TAU),
    (tuple(PASSES)[-1:], BF16, 512, TAU),
]


def count(name: str, z: Tensor, tau: float, log: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the counters of one pass, and the resources of its kernel."""
    one, before = PASSES[name], len(log)
    # Programs then visit all tiles of their rows, as with many rows.
    with mock.patch.object(NormedPairs, "num_programs", 1):
        one.run(z, tau)
    launches = [launch for launch in log[before:] if launch["name"] == one.kernel]
    faults = [launch["fault"] for launch in launches if launch["fault"]]
    if faults or not launches:
        raise RuntimeError(f"{one.kernel} must run, got {faults or 'no launch'}")
    # Of the two launches, for bounded and unbounded similarities, one returns at once.
    main = max(launches, key=lambda launch: launch["counters"].get("ex2", 0))
    counts = {c: sum(run["counters"].get(c, 0) for run in launches) for c in COUNTERS}
    instructions = [code for code in main["opcodes"] if "mma" in code and "sync" in code]
    return counts | {fact: main[fact] for fact in FACTS} | {"instructions": sorted(instructions)}


def implied_products(name: str, z: Tensor) -> float:
    """Return the multiply-adds of the tiles that a pass visits, as a share of N^2 D."""
    one, config, num_rows = PASSES[name], PASSES[name].pick(z), len(z)
    blocks, ratio = triton.cdiv(num_rows, config.block_m), config.block_m // config.block_n
    tiles = blocks * triton.cdiv(num_rows, config.block_n)
    on_diagonal = blocks * ratio
    if one.is_triangular:
        tiles -= ratio * blocks * (blocks - 1) // 2
    products = one.products[0] * (tiles - on_diagonal) + one.products[1] * on_diagonal
    return float(products * config.block_m * config.block_n / num_rows**2)


def row_of(name: str, dtype: torch.dtype, dim: int, tau: float, log: Any) -> dict[str, Any]:
    """Return one line: the cost of a pair at both sizes, and for many rows."""
    row: dict[str, Any] = {"pass": name, "dtype": dtype_name(dtype), "dim": dim, "tau": tau}
    counts, sizes = [], [size // 2 if dim > 256 else size for size in SIZES]
    for size in sizes:
        z = make_embeddings(size, dim, dtype=dtype)
        counts.append(count(name, z, tau, log))
        products = counts[-1]["flop_mma"] / (2 * size**2 * dim)
        row[f"products at N = {size}"] = round(products, 4)
        row[f"implied at N = {size}"] = round(implied_products(name, z), 4)
    row["config"] = vars(PASSES[name].pick(z))
    for counter in COUNTERS:
        slopes = [c[counter] / n for c, n in zip(counts, sizes, strict=True)]
        row[counter] = round((slopes[1] - slopes[0]) / (sizes[1] - sizes[0]), 5)
    row["products"] = round(row.pop("flop_mma") / (2 * dim), 4)
    return row | {key: counts[-1][key] for key in (*FACTS, "instructions")}


def repeats(row: dict[str, Any]) -> bool:
    """Return whether the products of a pass differ from those of the tiles that it visits."""
    sizes = [key.removeprefix("products ") for key in row if key.startswith("products at")]
    ratios = [row[f"products {size}"] / row[f"implied {size}"] for size in sizes]
    return any(abs(ratio - 1) > MOST_DEVIATION for ratio in ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, choices=(80, 90), required=True)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    emulator = importlib.import_module(os.environ["KERNEL_EMULATOR"])
    emulator.install(args.arch)
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")
    rows = []
    for names, dtype, dim, tau in PROBLEMS:
        for name in names:
            rows.append(row_of(name, dtype, dim, tau, emulator.LOG))
            print(rows[-1], flush=True)
    result = provenance("benchmarks.count_kernels", sys.argv[1:])
    result |= {"triton": triton.__version__, "arch": args.arch, "rows": rows}
    write_result(args.json, result, append=False)
    repeating = {(args.arch, row["pass"], row["dtype"], row["dim"]) for row in rows if repeats(row)}
    if repeating:
        sys.exit(f"products must be those of the tiling, got others in {repeating}")


if __name__ == "__main__":
    main()
