"""Tables of docs/kernels.md of what a pair takes of one multiprocessor, in clocks, by rates.

Of loops, from the counts of `benchmarks.count_loops`; and of wide rows, from the tiling: as they
are computed, and by a kernel that there is not, which would keep dz of 64 rows in registers.
"""

from __future__ import annotations

from benchmarks.cost_tables import source, table
from benchmarks.count_loops import PRODUCTS
from benchmarks.kernel_tables import GPUS, read

FILE = "exponentials.json"
# Bytes a clock of one multiprocessor: shared memory; 5,120 of a level 2 cache, by NVIDIA for the
# A100, and 3.35 TB/s of an H100's memory, by all of them.
_, MULTIPROCESSORS, _, CLOCK = GPUS["H100"]
SHARED, CACHE, MEMORY = 128, 5120 / MULTIPROCESSORS, 3.35e12 / CLOCK / MULTIPROCESSORS
DIM = 512
STEP = 16  # features or columns of one wgmma
ROWS = 64  # of one wgmma


def exponentials() -> str:
    """Return the clocks of loops, by the share of exponentials that are multiply-adds."""
    result = read(FILE)
    head = ["loop", "exponentials by FMA", "instructions", "issue", "special functions", "products"]
    lines = []
    for row in result["rows"]:
        clocks = row["clocks"]
        numbers = [clocks[name] for name in head[3:]]
        cells = [row["pass"].removesuffix(", Hopper"), f"{row['fma_exps']}/16"]
        cells += [f"{clocks['issue'] * result['lanes_per_clock']['issued']:.2f}"]
        lines.append([*cells, *(f"{x:.4f}" for x in numbers), f"{max(numbers):.4f}"])
    origin = source(FILE, result, "../benchmarks/results/emulated")
    return "\n\n".join([table([*head, "most"], lines), origin])


def operands(cols: int, features: int) -> float:
    """Return the bytes that the products of a 64-row operand with `cols` rows read, a pair."""
    return 2 * STEP * (ROWS + cols) * features / STEP / (ROWS * cols)


def wide_rows() -> str:
    """Return the clocks of an ordered pair of 512 features, and those of a fused gradient."""
    loads, h_bytes = 2 * DIM, 2
    # A product is of 64 x 128 in tiles of 128 x 128, of which a square needs half, and 256 x 128.
    # That of a panel of h is taken to run at the rate of tensor cores.
    sums = loads * (1 / 128 + 1 / 128) / 2
    panel = loads * (1 / 256 + 1 / 128)
    ways = {
        "sums": (0.5, operands(128, DIM) / 2 + sums, sums, 0.0),
        "h, to a panel": (1.0, operands(128, DIM) + panel, panel + h_bytes, h_bytes),
        "the panel times the rows": (1.0, 0.0, 0.0, h_bytes),
    }
    # Fused: two groups, each half of the columns of a tile and half of the features of dz; h is
    # passed on through shared memory.
    for cols in (64, 128):
        weighed = 2 * 2 * (ROWS + DIM // 2) / ROWS
        moved = loads / ROWS
        fused = operands(cols // 2, DIM) + weighed + moved + h_bytes
        ways[f"both at once, tiles of {ROWS} x {cols}"] = (2.0, fused, moved, 0.0)
    head = ["kernel", "products", "shared memory", "level 2 cache", "memory", "most"]
    lines, most = [], {}
    for name, (products, *moved_bytes) in ways.items():
        rates = zip(moved_bytes, (SHARED, CACHE, MEMORY), strict=True)
        clocks = [products * DIM / PRODUCTS, *(count / rate for count, rate in rates)]
        most[name] = max(clocks)
        lines.append([name, *(f"{x:.2f}" for x in (*clocks, most[name]))])
    first, *gradient = list(most.values())
    for name, parts in (("as it is", gradient[:2]), ("with the last of these", gradient[-1:])):
        lines.append([f"a step, {name}", *[""] * 4, f"{first + sum(parts):.2f}"])
    return table(head, lines)


TABLES = {"exponentials": exponentials, "wide_rows": wide_rows}
