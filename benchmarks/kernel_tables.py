"""The tables of docs/kernels.md, from the counts of `benchmarks.count_kernels`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from benchmarks._provenance import REPOSITORY
from benchmarks.cost_tables import source, table

FOLDER = REPOSITORY / "benchmarks" / "results" / "emulated"
Row = dict[str, Any]
HEAD = ["pass", "dtype", "D", "products", "ex2", "bytes", "conflicts", "registers", "spills"]
HEAD += ["shared KiB", "occupancy"]
KINDS = ("bf16", "2 planes", "3 planes")
# Architecture; then from data sheets: multiprocessors, dense bfloat16 FLOP/s, the clock they imply.
GPUS = {"A100": (80, 108, 312e12, 1.41e9), "H100": (90, 132, 989e12, 1.83e9)}
EX2_PER_CLOCK = 16  # per multiprocessor
BOUND_ROWS = 65536
DIM = 128


def read(name: str) -> dict[str, Any]:
    """Return a result file."""
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def host() -> str:
    """Return the table of the host's share of a step."""
    folder = REPOSITORY / "benchmarks" / "results" / "cpu"
    result = json.loads((folder / "host.json").read_text(encoding="utf-8"))
    head = ["step", "host, us", "dense PyTorch with its operators, us", "ratio"]
    lines = [
        [row["problem"], f"{row['host_us']:.0f}", f"{row['dense_us']:.0f}", f"{row['ratio']:.2f}"]
        for row in result["rows"]
    ]
    origin = source("host.json", result, "../benchmarks/results/cpu")
    return "\n\n".join([table(head, lines), origin])


def counts(file: str) -> str:
    """Return the table of all passes in a result file."""
    result = read(file)
    lines = []
    for row in result["rows"]:
        name = row["pass"] + (", shifted" if row["tau"] < 1 / 64 else "")
        name = name.replace("positive pairs, ", "positive ").replace("of wide rows", "wide")
        values = {"conflicts": row["bank_conflicts"], "bytes": bytes_of(row)}
        cells = [name, row["dtype"], str(row["dim"])]
        lines.append(cells + costs(row | values, "ex2"))
    origin = source(file, result, "../benchmarks/results/emulated")
    return "\n\n".join([table(HEAD, lines), origin])


def hopper_limits() -> str:
    """Return the table of what the kernels for capability 9.0 are compiled within."""
    file = REPOSITORY / "tests" / "kernels" / "compiled_limits.txt"
    _, *lines = file.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    names = {row[0].removeprefix("hopper_").replace(" D=", ", D = "): row[1:] for row in rows}
    head = ["kernel", "registers at the launch", "of groups", "of loading warps", "shared KiB"]
    whole = [
        [name, *cells]
        for name, cells in names.items()
        if not any(x in name for x in ("refs", "ragged", "fp16"))
    ]
    origin = (
        "[compiled_limits.txt](../tests/kernels/compiled_limits.txt), to which CI holds them with "
        "Triton 3.8 and, for common sizes, 3.6, whichever takes more."
    )
    return "\n\n".join([table(head, whole), origin])


def peers() -> str:
    """Return the table of the kernels of other packages."""
    lines = [
        [row["name"], row["dtype"], str(DIM), *costs(row, "mufu")]
        for row in read("peers.json")["kernels"]
    ]
    return table([text.replace("ex2", "special functions") for text in HEAD], lines)


def costs(row: Row, exponentials: str) -> list[str]:
    """Return the cells from products to occupancy."""
    numbers = [row["products"], row[exponentials], row["bytes"], row["conflicts"]]
    cells = [f"{value:.2f}".rstrip("0").rstrip(".") for value in numbers]
    cells += [str(row["regs"]), str(row["spills"]), f"{row['shared'] / 1024:.0f}"]
    return [*cells, f"{row['occupancy']:.0%}"]


def steps() -> str:
    """Return the cost of a pair in forward and backward together."""
    lines = []
    for arch in (90, 80):
        lines += [["ours", f"sm_{arch}", kind, *totals(step(arch, kind))] for kind in KINDS]
    lines += [[r["name"], "sm_90", r["dtype"], *totals(r)] for r in read("peers.json")["steps"]]
    return table(["step", "code for", "dtype", "products", "special functions", "bytes"], lines)


def totals(row: Row) -> list[str]:
    """Return the cells of a line of `steps`."""
    numbers = (row["products"], row["mufu"], row["bytes"])
    return [f"{value:.2f}".rstrip("0").rstrip(".") for value in numbers]


def step(arch: int, kind: str) -> Row:
    """Return the sums over the forward and the backward of `pair_lse` at D = 128."""
    parts = [
        row
        for row in read(f"sm_{arch}.json")["rows"]
        if (row["dtype"], row["dim"]) == (kind, DIM)
        and row["tau"] > 1 / 64
        and row["pass"] in ("forward", "backward")
    ]
    totals: Row = {key: sum(part[key] for part in parts) for key in ("products", "mufu")}
    return totals | {"bytes": sum(map(bytes_of, parts))}


def bytes_of(row: Row) -> float:
    """Return the bytes that a pair reads and writes."""
    return float(row["gld_bytes"] + row["gst_bytes"])


def bounds() -> str:
    """Return lower bounds in ms, from data sheets, for the products and the exponentials."""
    lines = []
    for gpu, (arch, multiprocessors, flops, clock) in GPUS.items():
        named = [(f"ours, {kind}", step(arch, kind)) for kind in KINDS]
        if arch == 90:
            others = read("peers.json")["steps"]
            named += [(f"{row['name']}, bf16", row) for row in others if row["dtype"] == "bf16"]
        for name, row in named:
            pairs = BOUND_ROWS**2
            products = row["products"] * 2 * pairs * DIM / flops
            special = row["mufu"] * pairs / (EX2_PER_CLOCK * multiprocessors * clock)
            milliseconds = [products * 1e3, special * 1e3, max(products, special) * 1e3]
            lines.append([name, gpu, *(f"{value:.1f}" for value in milliseconds)])
    return table(["step", "GPU", "products, ms", "special functions, ms", "bound, ms"], lines)


TABLES: dict[str, Callable[[], str]] = {
    "host": host,
    "hopper_limits": hopper_limits,
    "steps": steps,
    "bounds": bounds,
    "counts_sm_90": lambda: counts("sm_90.json"),
    "counts_hopper": lambda: counts("hopper.json"),
    "counts_sm_80": lambda: counts("sm_80.json"),
    "peers": peers,
}
