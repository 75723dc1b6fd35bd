"""The tables of docs/swap-in.md (a training step) and docs/distributed.md (ranks)."""

from __future__ import annotations

from benchmarks.cost_tables import processor, read, source, table


def step() -> str:
    """Return time and peak memory by batch size, and the largest batch within the limit."""
    result = read("step.json")
    losses = list(dict.fromkeys(row["loss"] for row in result["rows"]))
    cells = {(row["n"], row["loss"]): row for row in result["rows"]}
    largest = {
        loss: max(row["n"] for row in result["rows"] if row["loss"] == loss and "failed" not in row)
        for loss in losses
    }
    shown = [n for n in sorted({n for n, _ in cells}) if n & (n - 1) == 0 or n in largest.values()]
    lines = []
    for n in shown:
        line = [f"{n:,}"]
        for loss in losses:
            row = cells.get((n, loss), {})
            if "failed" in row or (not row and n > largest[loss]):
                line += ["fails", "fails"]
            elif row:
                line += [f"{row['seconds']:.2g}", f"{row['peak_mib']:,.0f}"]
            else:
                line += ["-", "-"]
        lines.append(line)
    head = ["rows", *(f"{loss}, {unit}" for loss in losses for unit in ("s", "MiB"))]
    ratio = largest["swapped"] / largest["dense"]
    note = (
        f"Within {result['limit_mib'] / 1024:g} GiB of process data the largest batch is "
        f"{largest['dense']:,} rows with the dense loss and at least {largest['swapped']:,} with "
        f"ours, {ratio:.0f} times as many: the measurement ended there by time, not memory. "
        f"{result['threads']} threads on {processor(result)}."
    )
    return "\n\n".join([table(head, lines), note, source("step.json", result)])


def scaling() -> str:
    """Return the speed-up by number of ranks, and the work of each rank."""
    result = read("scaling.json")
    lines = [
        [
            row["problem"],
            f"{row['n']:,}",
            str(row["ranks"]),
            f"{row['time_ms']:,.0f}",
            f"{row['speedup']:.2f}",
            f"{row['processor_speedup']:.2f}",
            f"{row['multiply_adds']:.2g}",
        ]
        for row in result["rows"]
    ]
    head = ["loss", "rows", "ranks", "ms", "speed-up", "speed-up in CPU time"]
    head += ["multiply-adds per rank"]
    counted = [[f"{row['ranks']:,}", f"{row['multiply_adds']:.3g}"] for row in result["counted"]]
    rows = f"{result['counted'][0]['n']:,}"
    return "\n\n".join(
        [
            table(head, lines),
            source("scaling.json", result),
            f"Multiply-adds of the busiest rank, counted for {rows} rows:",
            table(["ranks", "multiply-adds"], counted),
        ]
    )
