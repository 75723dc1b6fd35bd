"""Count the work of the kernels of spcl_fast/kernels per pair, by executing compiled code.

    KERNEL_EMULATOR=MODULE python -m benchmarks.count_kernels --arch 90 --json FILE

MODULE executes launches on CPU tensors: `install(arch)` makes it Triton's driver, and every launch
appends a dict to `LOG`. Counts at two sizes, multiples of the tiles, are fitted by a N^2 + b N; `a`
is the cost of a pair for many rows, where each program visits all tiles of the rows that it owns.
--hopper counts the kernels of kernels/hopper instead.
Exits with status 1 if the matrix products differ from those of the tiling by more than 3 %.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor

from benchmarks._provenance import provenance, write_result
from spcl_fast.kernels import _config_tables as tables
from spcl_fast.kernels import _wide_gradient
from spcl_fast.kernels._configs import Config, pick
from spcl_fast.kernels._planes import Planes, num_planes, padded_features
from spcl_fast.kernels._similarities import PlanePairs
from spcl_fast.kernels.hopper import _choice
from spcl_fast.kernels.hopper._choice import Tiles
from spcl_fast.kernels.pair_lse import pair_lse_bwd, pair_lse_fwd
from spcl_fast.kernels.positive_pair_loss import positive_pair_loss_bwd, positive_pair_loss_fwd
from spcl_fast.operands import Label, Lse, Pairs
from spcl_fast.testing import make_embeddings

TAU, SMALL_TAU = 0.07, 0.01  # |sim| is bounded by 1 / tau: the second needs shifted sums
GAMMA = 3.0
# By number of planes, multiples of all tiles.
SIZES = {1: (256, 512), 2: (128, 256), 3: (128, 256)}
MOST_DEVIATION = 0.03
COUNTERS: tuple[str, ...] = ("flop_mma", "ex2", "mufu", "gld_bytes", "gst_bytes", "atomics")
COUNTERS += ("bank_conflicts", "sld_conflicts", "sld_wavefronts", "sst_conflicts", "sst_wavefronts")
FACTS = ("regs", "spills", "shared", "occupancy")


@dataclass(frozen=True)
class Pass:
    """One pass over all pairs: how to run it, and what to count."""

    run: Callable[[Tensor, float], object]
    kernel: str
    table: Any
    products: int = 1  # of a tile
    is_triangular: bool = field(default=False, kw_only=True)  # tiles from the diagonal on only

    @property
    def is_hopper(self) -> bool:
        """Return whether the kernel is one of kernels/hopper."""
        return self.kernel.startswith("hopper_")

    def pick(self, z: Tensor) -> Config | Tiles:
        """Return the configuration for rows."""
        if self.is_hopper:
            rows = _planes(z)
            tiles: Tiles = self.table[_choice.place_of(rows)]
            return tiles
        return pick(self.kernel, self.table, _planes(z), z.device)


def _planes(z: Tensor) -> Planes:
    """Return planes like those of `z`, not filled."""
    shape = num_planes(z.dtype), 0, padded_features(z.shape[1])
    return Planes(z.new_empty(shape), z[:0], z[:0], z.shape[1], 0)


def _forward(z: Tensor, tau: float) -> object:
    return pair_lse_fwd(Pairs(z, None, tau), has_backward=True)


def _backward(z: Tensor, tau: float) -> object:
    lse, dlse = torch.full((len(z),), 1 / tau), torch.ones(len(z))
    pairs = Pairs(z, None, tau)
    return pair_lse_bwd(pairs, Lse(lse, None), dlse, None, needs_z=True, needs_refs=False)


def _positive(*, is_forward: bool) -> Callable[[Tensor, float], object]:
    def run(z: Tensor, tau: float) -> object:
        lse, labels = torch.full((len(z),), 1 / tau), torch.zeros(len(z), dtype=torch.int64)
        given: tuple[Any, ...] = (Pairs(z, None, tau), lse, Label(labels, GAMMA), "linear")
        if is_forward:
            return positive_pair_loss_fwd(*given)
        return positive_pair_loss_bwd(lse, *given, needs_z=True, needs_refs=False)

    return run


PASSES = {
    "forward": Pass(_forward, "pair_sums_kernel", tables.PAIR_SUMS, is_triangular=True),
    "backward": Pass(_backward, "row_gradient_kernel", tables.ROW_GRADIENT, 2),
    "positive pairs, forward": Pass(
        _positive(is_forward=True), "positive_forward_kernel", tables.POSITIVE_FORWARD
    ),
    "positive pairs, backward": Pass(
        _positive(is_forward=False), "positive_backward_kernel", tables.POSITIVE_BACKWARD, 2
    ),
    "backward of wide rows, h": Pass(_backward, "h_panel_kernel", tables.H_PANEL),
    "backward of wide rows, product": Pass(_backward, "panel_product_kernel", tables.PANEL_PRODUCT),
}
NARROW = tuple(PASSES)[:4]
PAIR_LSE = NARROW[:2]
WIDE = tuple(PASSES)[4:]
HOPPER = {
    "forward, Hopper": Pass(
        _forward, "hopper_pair_sums_kernel", _choice.PAIR_SUMS, is_triangular=True
    ),
    "backward, Hopper": Pass(_backward, "hopper_row_gradient_kernel", _choice.ROW_GRADIENT, 2),
}
HOPPER_WIDE = {
    "forward of wide rows, Hopper": Pass(
        _forward, "hopper_wide_sums_kernel", _choice.PAIR_SUMS, is_triangular=True
    ),
    "backward of wide rows, h, Hopper": Pass(_backward, "hopper_h_panel_kernel", _choice.H_PANEL),
}
PASSES |= HOPPER | HOPPER_WIDE
BF16, FP32 = torch.bfloat16, torch.float32
# Matrices by name: dtype of the rows, precision of float32 products.
KINDS = {"bf16": (BF16, "highest"), "2 planes": (FP32, "high"), "3 planes": (FP32, "highest")}
# passes, kind, D and tau
PROBLEMS: list[tuple[Sequence[str], str, int, float]] = [
    (NARROW, "bf16", 128, TAU),
    (PAIR_LSE, "bf16", 64, TAU),
    (PAIR_LSE, "bf16", 256, TAU),
    (NARROW, "2 planes", 128, TAU),
    (PAIR_LSE, "2 planes", 256, TAU),
    (PAIR_LSE, "3 planes", 128, TAU),
    (PAIR_LSE, "bf16", 128, SMALL_TAU),
    (WIDE[:1], "bf16", 512, TAU),
    (WIDE, "2 planes", 512, TAU),
]
HOPPER_PROBLEMS: list[tuple[Sequence[str], str, int, float]] = [
    *((tuple(HOPPER), "bf16", dim, TAU) for dim in (64, 128, 256)),
    (tuple(HOPPER), "bf16", 128, SMALL_TAU),
    *((tuple(HOPPER), "2 planes", dim, TAU) for dim in (64, 128, 256)),
    *((tuple(HOPPER), "3 planes", dim, TAU) for dim in (64, 128)),
    # Beside the plain kernels.
    *((("forward", *HOPPER_WIDE, WIDE[0]), kind, 512, TAU) for kind in ("bf16", "2 planes")),
]


def count(name: str, z: Tensor, tau: float, log: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the counters of one pass, and the resources of its kernel."""
    one, before = PASSES[name], len(log)
    # Programs then visit all tiles of their rows, as with many rows.
    few = mock.patch.object(PlanePairs, "num_programs", 1)
    chosen = mock.patch.object(_choice, "MIN_PAIRS", 1 if one.is_hopper else 1 << 62)
    with few, chosen, mock.patch.object(_wide_gradient, "_PRODUCT_PROGRAMS", 1):
        one.run(z, tau)
    launches = [launch for launch in log[before:] if launch["name"] == one.kernel]
    faults = [launch["fault"] for launch in launches if launch["fault"]]
    if faults or len(launches) != 1:
        raise RuntimeError(f"{one.kernel} must run once, got {faults or len(launches)}")
    (launch,) = launches
    counts = {c: launch["counters"].get(c, 0) for c in COUNTERS}
    instructions = [code for code in launch["opcodes"] if "mma" in code and "sync" in code]
    return counts | {fact: launch[fact] for fact in FACTS} | {"instructions": sorted(instructions)}


def implied_products(name: str, z: Tensor) -> float:
    """Return the multiply-adds of the tiles that a pass visits, as a share of N^2 D."""
    one, config, num_rows = PASSES[name], PASSES[name].pick(z), len(z)
    planes = num_planes(z.dtype)
    products = one.products * planes * (planes + 1) / 2
    if not one.is_triangular:
        return products
    blocks, ratio = triton.cdiv(num_rows, config.block_m), config.block_m // config.block_n
    tiles = blocks * triton.cdiv(num_rows, config.block_n) - ratio * blocks * (blocks - 1) // 2
    return float(products * tiles * config.block_m * config.block_n / num_rows**2)


def row_of(name: str, kind: str, dim: int, tau: float, log: Any) -> dict[str, Any]:
    """Return one line: the cost of a pair at both sizes, and for many rows."""
    row: dict[str, Any] = {"pass": name, "dtype": kind, "dim": dim, "tau": tau}
    dtype, precision = KINDS[kind]
    torch.set_float32_matmul_precision(precision)
    counts, sizes = [], SIZES[num_planes(dtype)]
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
    parser.add_argument("--hopper", action="store_true", help="the kernels of kernels/hopper")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    emulator = importlib.import_module(os.environ["KERNEL_EMULATOR"])
    emulator.install(args.arch)
    torch.set_num_threads(1)
    rows = []
    for names, kind, dim, tau in HOPPER_PROBLEMS if args.hopper else PROBLEMS:
        for name in names:
            rows.append(row_of(name, kind, dim, tau, emulator.LOG))
            print(rows[-1], flush=True)
    result = provenance("benchmarks.count_kernels", sys.argv[1:])
    result |= {"triton": triton.__version__, "arch": args.arch, "rows": rows}
    write_result(args.json, result, append=False)
    repeating = {(args.arch, row["pass"], row["dtype"], row["dim"]) for row in rows if repeats(row)}
    if repeating:
        sys.exit(f"products must be those of the tiling, got others in {repeating}")


if __name__ == "__main__":
    main()
