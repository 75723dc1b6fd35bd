"""Groups of runs whose scores may be compared: one data set, one grid, one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from spcl_fast.segmentation.report.runs import RunRecord, look_up

Key = tuple[str, str, str]


def group_runs(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Return the runs by a name of their data, grid and protocol, in the order of the runs."""
    keys = [group_of(run) for run in records]
    roots = {key[0] for key in keys}
    found: dict[str, list[RunRecord]] = {}
    for run, (root, grid, protocol) in zip(records, keys, strict=True):
        same = [other for other in roots if PurePath(other).name == PurePath(root).name]
        data = root if len(same) > 1 else PurePath(root).name
        parts = [part for part in (data, grid, protocol) if part]
        found.setdefault(", ".join(parts), []).append(run)
    return found


def group_of(run: RunRecord) -> Key:
    """Return folder of the data set, grid and protocol of a run, "" for what it does not say."""
    root = look_up(run.config, "data", "root")
    size, spacing = (look_up(run.config, "data", "grid", k) for k in ("size", "spacing_mm"))
    channel = look_up(run.config, "data", "channel")
    protocol = look_up(run.config, "data", "protocol")
    data = str(root) if root else "generated phantom"
    return (
        f"{data} channel {channel}" if channel else data,
        f"{size} x {size} of {spacing} mm" if size and spacing else "",
        f"{protocol} split" if protocol else "",
    )
