"""What was found in a folder of scans, as lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from spcl_fast.segmentation.data.field_of_view import Proposal
from spcl_fast.segmentation.data.grid import Grid
from spcl_fast.segmentation.data.inspect import CROPPED_SHARE, UNKNOWN, Inspection
from spcl_fast.segmentation.data.meta_labels import has_many_numbers


def render(report: Inspection) -> list[str]:
    """Return the description as lines of plain text, problems last."""
    lines = [
        f"{report.root}",
        f"layout      {report.layout}",
        f"patients    {report.patients}",
        f"scans       {report.scans} ({report.scans - len(report.unlabelled)} labelled, "
        f"{len(report.unlabelled)} unlabelled)",
        *([f"unlabelled  {_some(report.unlabelled)}"] if report.unlabelled else []),
        f"slices      {report.slices} ({report.unlabelled_slices} without a label)",
    ]
    if report.scans:
        (s, h, w), (S, H, W) = report.shape_range
        (dz, dy, dx), (DZ, DY, DX) = report.spacing_range
        lines += [
            f"size        rows {h}..{H}, columns {w}..{W}, slices {s}..{S}",
            f"spacing mm  rows {dy:.2f}..{DY:.2f}, columns {dx:.2f}..{DX:.2f}, "
            f"slices {dz:.2f}..{DZ:.2f}",
        ]
        if report.fill_share:
            lines.append(
                f"fill        {100 * report.fill_share:.2f} % of the voxels hold a value far from "
                "all others, which the contrast leaves out"
            )
        total = max(1, sum(report.label_voxels.values()) + report.ignored_voxels)
        for name, count in report.label_voxels.items():
            lines.append(f"label       {name}: {count} voxels ({100 * count / total:.2f} %)")
        if report.ignored_voxels:
            share = 100 * report.ignored_voxels / total
            lines.append(f"not annotated  {report.ignored_voxels} voxels ({share:.2f} %)")
        grid = report.grid
        lines.append(
            f"grid        {grid.size} x {grid.size} pixels of {grid.spacing_mm:g} mm leave out "
            f"{100 * report.foreground_outside:.2f} % of the foreground; "
            f"{report.cropped_scans} scans lose more than {100 * CROPPED_SHARE:g} % of theirs"
        )
        lines += _proposal(report.proposal) if report.proposal else []
        for name, counts in report.meta_labels.items():
            lines.append(f"meta-label  {name}: {_meta_label(name, counts)}")
    if report.left_out:
        lines.append(
            f"left out    {_some(report.left_out)}: in folders without labels, which "
            "--data.unlabelled-folders takes for training"
        )
    lines += [f"problem     {sentence}" for sentence in report.problems]
    return lines if report.problems else [*lines, "problems    none"]


def _meta_label(name: str, counts: dict[str, int]) -> str:
    """Return the categories of a meta-label, or the range of numbers that are too many."""
    known = [value for value in counts if value != UNKNOWN]
    if not has_many_numbers(known):
        return _some([f"{category} {count}" for category, count in counts.items()])
    low, high = min(known, key=float), max(known, key=float)
    return (
        f"{len(known)} numbers from {low} to {high}, unknown {counts.get(UNKNOWN, 0)}: as a label "
        f"it needs bins (--loss.bins {name}=5) or a window (--loss.windows {name}=10)"
    )


def _proposal(found: Proposal) -> list[str]:
    """Return lines about the proposed grids."""
    lines = [
        f"proposed    {_flags(found.grid)}: median pixel {found.pixel_mm:.3g} mm, foreground of "
        f"95 % of the scans within {found.reach_mm:.0f} mm of the centre"
    ]
    if found.small is not None:
        lines.append(f"            {_flags(found.small)} for a quick start on a CPU")
    return lines


def _flags(grid: Grid) -> str:
    return f"--data.grid.size {grid.size} --data.grid.spacing-mm {grid.spacing_mm:g}"


def _some(names: Sequence[str], most: int = 8) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more
