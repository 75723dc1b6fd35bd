"""Count the instructions of a pair in the loops over whole tiles of kernels/hopper, at D = 64.

    KERNEL_EMULATOR=MODULE python -m benchmarks.count_loops --json FILE

MODULE is as for `benchmarks.count_kernels`. The machine code is Triton's for capability 9.0, of the
sums with none and with more and more exponentials by multiply-adds, and of the gradient. A pair
takes a multiprocessor as many clocks as what is used most: issue of instructions, special function
units or tensor cores, at the rates below. Latencies are left out: what overlaps least is a bound.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.runtime.jit import JITFunction

from benchmarks._provenance import provenance, write_result
from benchmarks.count_kernels import PASSES, TAU
from spcl_fast.kernels._similarities import PlanePairs
from spcl_fast.kernels.hopper import _choice
from spcl_fast.testing import make_embeddings

# Lanes a clock of a multiprocessor, and multiply-adds of bfloat16, by NVIDIA for capability 9.0.
ISSUED, SPECIAL, PRODUCTS = 128, 16, 2048
DIM, NUM_ROWS = 64, 256
SHARES = (0, 1, 2, 3, 4, 6, 8)
THREADS = 128  # of a group: a tile, or its rows of one


def machine_code(name: str) -> bytes:
    """Return what Triton makes of the kernel of a pass."""
    made = []
    run = JITFunction.run

    def note(kernel: Any, *args: Any, **options: Any) -> Any:
        compiled = run(kernel, *args, **options)
        made.extend([compiled] * (kernel.__name__ == PASSES[name].kernel))
        return compiled

    z = make_embeddings(NUM_ROWS, DIM, dtype=torch.bfloat16)
    with (
        mock.patch.object(JITFunction, "run", note),
        mock.patch.object(_choice, "MIN_PAIRS", 1),
        mock.patch.object(PlanePairs, "num_programs", 1),
    ):
        PASSES[name].run(z, TAU)
    cubin: bytes = made[0].asm["cubin"]
    return cubin


def disassembled(cubin: bytes) -> list[str]:
    """Return labels and instructions in their order."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pattern = r"^(\.L_x_\d+):|/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(.*?);"
    return [label or code for label, code in re.findall(pattern, printed, re.MULTILINE)]


def whole_tiles(code: list[str]) -> Counter[str]:
    """Return the opcodes of the shortest loop with products and exponentials."""
    places = {line: i for i, line in enumerate(code) if line.startswith(".L_x_")}
    loops = []
    for i, line in enumerate(code):
        target = re.match(r"BRA\b.*?(\.L_x_\d+)", line)
        if target and places.get(target[1], i) < i:
            body = [x for x in code[places[target[1]] : i + 1] if x not in places]
            loops.append(Counter(re.split(r"[. ]", x)[0] for x in body))
    loops = [loop for loop in loops if loop["HGMMA"] and loop["MUFU"]]
    return min(loops, key=lambda loop: loop.total())


def row_of(name: str, share: int) -> dict[str, Any]:
    """Return one line: the loop of a pass with so many of 16 exponentials by multiply-adds."""
    one = PASSES[name]
    table = {(1, DIM): dataclasses.replace(one.table[1, DIM], fma_exps=share)}
    with mock.patch.dict(one.table, table):
        loop = whole_tiles(disassembled(machine_code(name)))
    tiles = one.table[1, DIM]
    rows = tiles.block_m if one.is_triangular else tiles.block_m // tiles.groups
    pairs = rows * tiles.block_n / THREADS
    clocks = {
        "issue": loop.total() / pairs / ISSUED,
        "special functions": loop["MUFU"] / pairs / SPECIAL,
        "products": one.products * DIM / PRODUCTS,
    }
    row = {"pass": name, "dtype": "bf16", "dim": DIM, "fma_exps": share, "opcodes": dict(loop)}
    return row | {"clocks": {key: round(value, 4) for key, value in clocks.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    importlib.import_module(os.environ["KERNEL_EMULATOR"]).install(90)
    torch.set_num_threads(1)
    rows = []
    for name, shares in (("forward, Hopper", SHARES), ("backward, Hopper", (0,))):
        for share in shares:
            rows.append(row_of(name, share))
            print(rows[-1], flush=True)
    result = provenance("benchmarks.count_loops", sys.argv[1:])
    rates = {"issued": ISSUED, "special functions": SPECIAL, "products": PRODUCTS}
    result |= {"triton": triton.__version__, "lanes_per_clock": rates, "rows": rows}
    write_result(args.json, result, append=False)


if __name__ == "__main__":
    main()
