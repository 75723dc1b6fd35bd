"""Summarise a folder of scans and list what is wrong with it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.field_of_view import (
    Proposal,
    extent_of,
    foreground_outside,
    is_foreground,
    propose_grid,
)
from spcl_fast.segmentation.data.find import find_data
from spcl_fast.segmentation.data.grid import Grid, intensity_range
from spcl_fast.segmentation.data.layouts import LayoutName
from spcl_fast.segmentation.data.layouts.layout import FIRST_CHANNEL, Choice
from spcl_fast.segmentation.data.scan import IGNORED, Scan
from spcl_fast.segmentation.data.volume import read_scan

Number = TypeVar("Number", int, float)

UNKNOWN = "unknown"
CROPPED_SHARE = 0.01  # a scan with more of its foreground outside the grid is counted


@dataclass
class Inspection:
    """The content of a folder; all counts are over readable scans.

    Attributes:
        root: The folder.
        layout: Name of its layout.
        patients: Number of patients.
        scans: Number of scans.
        unlabelled: Names of the scans without a mask.
        left_out: Names of the scans in folders without labels, which are taken on request.
        slices: Number of slices.
        unlabelled_slices: Slices of scans with masks that have no foreground label.
        fill_share: Share of all image voxels that hold a fill value and do not count in the
            normalisation.
        shape_range: Minimum and maximum (S, H, W), per axis.
        spacing_range: Minimum and maximum (dz, dy, dx) in millimetres, per axis.
        label_voxels: Voxels of each class by name.
        ignored_voxels: Voxels that the masks say are not annotated.
        grid: The grid that foreground is measured against.
        foreground_outside: Share of all foreground voxels that the grid does not cover.
        cropped_scans: Scans that lose more than 1 % of their foreground to the grid.
        labelled_patients: Patients with a mask.
        proposal: A grid that holds the foreground; None without a readable scan.
        meta_labels: Scans, or slices where the column describes them, of each category (or
            ``"unknown"``) of each meta-label.
        problems: One sentence for each scan that cannot be used or contradicts itself.
        readable: The scans that can be read.
    """

    root: str
    layout: str = ""
    patients: int = 0
    scans: int = 0
    unlabelled: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    slices: int = 0
    unlabelled_slices: int = 0
    fill_share: float = 0.0
    shape_range: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    spacing_range: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    label_voxels: dict[str, int] = field(default_factory=dict)
    ignored_voxels: int = 0
    grid: Grid = field(default_factory=Grid)
    foreground_outside: float = 0.0
    cropped_scans: int = 0
    labelled_patients: int = 0
    proposal: Proposal | None = None
    meta_labels: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    readable: list[Scan] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """Return everything except the scans themselves, ready for JSON."""
        facts = asdict(self)
        del facts["readable"]
        return facts


def inspect(
    root: Path | str,
    csv: Path | str | None = None,
    grid: Grid | None = None,
    layout: LayoutName = "auto",
    choice: Choice = FIRST_CHANNEL,
) -> Inspection:
    """Read every scan below a folder and describe what is there.

    Args:
        root: Folder in one of the layouts of `spcl_fast.segmentation.data.layouts`.
        csv: Metadata file, see `spcl_fast.segmentation.data.metadata_csv.read_metadata_csv`.
        grid: Grid that the foreground is measured against; the default `Grid` if None.
        layout: Name of the layout; ``"auto"`` recognises it.
        choice: What is read of images with several channels.

    Returns:
        The description. A scan that cannot be used, or a CSV file that does not fit, adds a
        sentence to ``problems``, and inspection continues.

    Raises:
        DataError: `root` is not a folder in the layout, or has none or several.
    """
    report = Inspection(str(root), grid=grid or Grid())
    found = find_data(root, csv, layout, report.problems, choice)
    report.layout = found.layout
    if not choice.unlabelled_folders:
        names = {scan.name for scan in found.scans}
        wide = replace(choice, unlabelled_folders=True)
        more = find_data(root, None, layout, [], wide).scans
        report.left_out = [scan.name for scan in more if scan.name not in names]
    _describe_volumes(report, found.scans, found.class_names)
    return report


def _describe_volumes(
    report: Inspection, scans: Sequence[Scan], class_names: Sequence[str]
) -> None:
    """Fill in the report."""
    shapes, spacings, extents, readable = [], [], [], report.readable
    voxels: Counter[int] = Counter()
    outside = fill = 0
    for scan in scans:
        try:
            volume = read_scan(scan)
        except DataError as error:
            report.problems.append(str(error))
            continue
        readable.append(scan)
        if volume.image.min() == volume.image.max():
            report.problems.append(f"{scan.image} must hold several values, got one.")
        report.problems += volume.geometry.notes
        shapes.append(volume.image.shape)
        fill += intensity_range(torch.from_numpy(volume.image)).num_fill
        spacings.append(volume.spacing_mm)
        extents.append(extent_of(volume))
        if scan.mask is None:
            report.unlabelled.append(scan.name)
            continue
        mask = torch.from_numpy(volume.mask)
        counts = torch.bincount(mask.flatten(), minlength=len(class_names)).tolist()
        voxels.update(dict(enumerate(counts)))
        num_foreground = sum(counts[1 : len(class_names)])
        if not num_foreground:
            report.problems.append(f"{scan.mask} must hold labelled voxels, got background only.")
        report.unlabelled_slices += int((~is_foreground(mask)).all(dim=(1, 2)).sum())
        lost = foreground_outside(volume, report.grid)
        outside += lost
        report.cropped_scans += lost > CROPPED_SHARE * num_foreground
    report.patients = len({scan.patient for scan in readable})
    report.scans = len(readable)
    report.slices = sum(shape[0] for shape in shapes)
    report.label_voxels = {name: voxels[i] for i, name in enumerate(class_names)}
    report.ignored_voxels = voxels[IGNORED]
    report.foreground_outside = outside / max(1, sum(voxels[i] for i in range(1, len(class_names))))
    report.fill_share = fill / max(1, sum(map(math.prod, shapes)))
    report.meta_labels = _count_meta_labels(readable, [shape[0] for shape in shapes])
    report.labelled_patients = len({scan.patient for scan in readable if scan.mask is not None})
    if readable:
        report.proposal = propose_grid(extents)
        report.shape_range = _extremes(shapes)
        report.spacing_range = _extremes(spacings)


def _extremes(rows: Sequence[tuple[Number, ...]]) -> tuple[tuple[Number, ...], tuple[Number, ...]]:
    columns = list(zip(*rows, strict=True))
    return tuple(min(column) for column in columns), tuple(max(column) for column in columns)


def _count_meta_labels(scans: Sequence[Scan], lengths: Sequence[int]) -> dict[str, dict[str, int]]:
    names = sorted({name for scan in scans for name in scan.meta})
    counts = {"phase": Counter(scan.phase or UNKNOWN for scan in scans)}
    counts |= {name: Counter(scan.meta.get(name, UNKNOWN) for scan in scans) for name in names}
    for name in sorted({name for scan in scans for name in scan.slice_meta}):
        values = (
            scan.slice_meta.get(name, {}).get(k, scan.meta.get(name, UNKNOWN))
            for scan, length in zip(scans, lengths, strict=True)
            for k in range(length)
        )
        counts[name] = Counter(values)
    return {name: dict(sorted(count.items())) for name, count in counts.items()}
