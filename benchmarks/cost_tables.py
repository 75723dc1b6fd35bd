"""The tables of docs/benchmarks.md, and README.md's table of what a loss costs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks._provenance import REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results" / "cpu"
Row = dict[str, Any]
NATIVE = ("native", "native, no cache")
README_PROVIDERS = ("products", "dense", "torch.compile", "chunked", *NATIVE)
NAMES = {
    "self-paced": "self-paced",
    "supcon": "SupCon",
    "ntxent": "NT-Xent",
    "meta-labels": "three labels",
    "bank": "bank",
}
AXES = {"dim": "D", "classes": "classes", "tau": "tau", "threads": "threads"}


def summary() -> str:
    """Return README's table: the self-paced loss against the number of rows."""
    result = read("losses.json")
    rows = [row for row in both(result) if row["problem"] == "self-paced"]
    first = rows[0]
    note = (
        f"Self-paced loss, forward and backward, D = {first['dim']}, {first['classes']} classes, "
        f"float32, {first['threads']} threads on {processor(result)}. Median time in ms; in "
        "brackets, where measured, peak memory above the inputs in MiB. `refused`: the error "
        "against float64 is more than twice that of dense float32; `-`: not run, or beyond the "
        "memory or time limit. `products` is only `S = z @ z.T; S @ z`; `dense` is the reference "
        "in plain PyTorch."
    )
    plot = "![time and memory against N](benchmarks/results/cpu/losses.png)"
    more = "SupCon, other libraries, wide rows, banks and sweeps: [benchmarks](docs/benchmarks.md)."
    return "\n\n".join([by_rows(rows, README_PROVIDERS), note, plot, more])


def losses() -> str:
    """Return the tables of all providers, one per problem."""
    result = read("losses.json")
    parts = []
    for problem in dict.fromkeys(row["problem"] for row in result["rows"]):
        rows = [row for row in both(result) if row["problem"] == problem]
        ran = dict.fromkeys(row["provider"] for row in rows if "time_ms" in row)
        parts += [f"{NAMES[problem]}:", by_rows(rows, list(ran))]
    return "\n\n".join([*parts, source("losses.json", result)])


def by_rows(rows: list[Row], providers: Sequence[str]) -> str:
    """Return time and memory: a line per number of rows, a column per provider."""
    cells = {(row["n"], row["provider"]): row for row in rows}
    lines = [
        [f"{n:,}", *(cell(cells.get((n, name), {})) for name in providers)]
        for n in sorted({n for n, _ in cells})
    ]
    return table(["N", *providers], lines)


def ratios() -> str:
    """Return the time of native relative to the products and to dense, of every CPU."""
    results = {name: read(name) for name in ("losses.json", "losses_avx2.json", "wide.json")}
    cells: dict[tuple[str, int, int, str], dict[str, Row]] = {}
    for result in results.values():
        for row in result["rows"]:
            if row["problem"] in ("self-paced", "supcon"):
                key = row["problem"], row["dim"], row["n"], processor(result)
                cells.setdefault(key, {})[row["provider"]] = row
    lines = [
        [NAMES[problem], str(dim), f"{n:,}", cpu, *shares(cells[problem, dim, n, cpu])]
        for problem, dim, n, cpu in sorted(cells)
    ]
    head = ["loss", "D", "N", "CPU", *share_names()]
    return "\n\n".join([table(head, lines), *(source(n, one) for n, one in results.items())])


def share_names() -> list[str]:
    return [f"{name} / {of}" for name in NATIVE for of in ("products", "dense")]


def shares(mine: Mapping[str, Row]) -> list[str]:
    """Return the ratios of `share_names` from the rows of one problem by provider."""
    return [share(mine.get(name), mine.get(of)) for name in NATIVE for of in ("products", "dense")]


def share(row: Row | None, of: Row | None) -> str:
    if row is None or of is None:
        return "-"
    ratio = row["time_ms"] / of["time_ms"]
    return f"{ratio:.3f}" if ratio < 0.1 else f"{ratio:.2f}"


def rates() -> str:
    """Return GFLOP/s of the runs that timed the machine's own sgemm in the same rounds."""
    results = {name: read(name) for name in ("losses.json", "wide.json")}
    rows = [row for one in results.values() for row in one["rows"] if "sgemm_gflops" in row]
    lines = [
        [
            NAMES[row["problem"]],
            str(row["dim"]),
            f"{row['n']:,}",
            row["provider"],
            f"{row['gflops']:.0f}",
            f"{row['sgemm_gflops']:.0f}",
            f"{row['gflops'] / row['sgemm_gflops']:.0%}".replace("%", " %"),
        ]
        for row in rows
        if row["provider"] in ("products", *NATIVE)
    ]
    head = ["loss", "D", "N", "provider", "GFLOP/s", "sgemm", "share"]
    files = " and ".join(f"[{name}](../benchmarks/results/cpu/{name})" for name in results)
    return f"{table(head, lines)}\n\nFrom {files}, as above."


def labels() -> str:
    """Return the cost of two classes and of three labels relative to one label of 64 classes."""
    result = read("labels.json")
    return "\n\n".join([against_one_label(result["rows"]), source("labels.json", result)])


def against_one_label(rows: list[Row]) -> str:
    cells = {
        (row["n"], str(row["classes"]), row["provider"]): row
        for row in rows
        if row["problem"] in ("self-paced", "meta-labels")
    }
    lines = []
    for n, classes in dict.fromkeys((n, classes) for n, classes, _ in cells):
        line = [f"{n:,}", classes.strip("[]")]
        for name in NATIVE:
            row = cells[n, classes, name]
            of_products = share(row, cells.get((n, classes, "products")))
            of_one_label = share(row, cells.get((n, "64", name)))
            line += [number(row["time_ms"]), of_products, of_one_label]
        lines.append(line)
    head = [f"{name}{of}" for name in NATIVE for of in (", ms", " / products", " / 64 classes")]
    return table(["N", "classes", *head], lines)


def bank() -> str:
    """Return the time of a bank relative to dense code, and its rate beside the square case."""
    result = read("bank.json")
    lines = []
    for row in result["rows"]:
        dense = row.get("dense_over_this")
        lines.append(
            [
                NAMES[row["problem"]],
                f"{row['n']:,} x {row.get('refs', row['n']):,}",
                row["provider"],
                number(row["time_ms"]),
                "-" if row["peak_mib"] is None else f"{row['peak_mib']:,.0f}",
                "-" if dense is None else f"{1 / dense:.2f}",
                f"{row['gflops']:.0f}",
            ]
        )
    head = ["loss", "pairs", "provider", "ms", "MiB", "/ dense", "GFLOP/s"]
    return "\n\n".join([table(head, lines), source("bank.json", result)])


def memory() -> str:
    """Return peak memory and time of one step in a fresh process."""
    result = read("memory.json")
    lines = [
        [
            row["impl"],
            f"{row['n']:,}",
            str(row["dim"]),
            str(row["tile_cache_mib"]),
            str(row["threads"]),
            f"{row['peak_mib']:,.0f}",
            f"{row['limit_mib']:,.0f}",
            f"{row['one_matrix_mib']:,.0f}",
            f"{row['seconds']:.1f}",
        ]
        for row in result["rows"]
    ]
    head = ["impl", "N", "D", "cache", "threads", "peak", "limit", "N x N", "seconds"]
    return "\n\n".join([table(head, lines), source("memory.json", result)])


def sweeps() -> str:
    """Return time in ms along one axis at a time; the other values are those of the first row."""
    result = read("sweeps.json")
    centre = result["rows"][0]
    providers = list(dict.fromkeys(row["provider"] for row in result["rows"]))
    parts = []
    for axis, name in AXES.items():
        others = {key: centre[key] for key in ("problem", "n", *AXES) if key != axis}
        rows = [row for row in result["rows"] if others.items() <= row.items()]
        cells = {(row[axis], row["provider"]): row for row in rows}
        lines = [
            [f"{value:g}", *(cell_time(cells.get((value, one), {})) for one in providers)]
            for value in sorted({value for value, _ in cells})
        ]
        parts.append(table([name, *providers], lines))
    fixed = ", ".join(f"{name} {centre[axis]:g}" for axis, name in AXES.items())
    note = f"{NAMES[centre['problem']]}, N = {centre['n']:,}; {fixed} unless varied; ms."
    return "\n\n".join([note, *parts, source("sweeps.json", result)])


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, right-aligned."""
    texts = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---:|" * len(head), *texts])


def cell(row: Row) -> str:
    """Return time and memory of a row, or why it has none."""
    time = cell_time(row)
    return time if row.get("peak_mib") is None else f"{time} ({row['peak_mib']:,.0f})"


def cell_time(row: Row) -> str:
    if "time_ms" not in row:
        return "refused" if row.get("reason", "").startswith("refused") else "-"
    return number(row["time_ms"])


def number(value: float) -> str:
    return f"{value:,.2f}" if value < 10 else f"{value:,.0f}"


def both(result: dict[str, Any]) -> list[Row]:
    """Return the rows with a time and those with a reason for being left out."""
    rows: list[Row] = result["rows"] + result["left_out"]
    return rows


def processor(result: dict[str, Any]) -> str:
    """Return the CPU and, where the file says so, the instruction set of the kernels."""
    name = str(result["processor"]).split(" x ")[0]
    return f"{name} with {result['cpu_kernels']}" if "cpu_kernels" in result else name


def read(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return result


def source(name: str, result: dict[str, Any], results: str = "../benchmarks/results/cpu") -> str:
    """Return the sentence that names a result file in `results`, its CPU and its commands."""
    commands = " and ".join(f"`{command}`" for command in result["command"].split(" && "))
    is_timed = results.endswith("/cpu") and "processor" in result
    cpu = f" ({processor(result)})" if is_timed else ""
    return f"[{name}]({results}/{name}){cpu} from {commands}."


TABLES: dict[str, Callable[[], str]] = {
    "losses": losses,
    "ratios": ratios,
    "rates": rates,
    "labels": labels,
    "bank": bank,
    "memory": memory,
    "sweeps": sweeps,
}
