"""Which scans a pre-training saw, kept in the metadata of its encoder.

A patient is seen if the same data set lists it among the training patients, or if an image has the
name and the size in bytes of one that was trained on, as a copy of the data set has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spcl_fast.segmentation.data.grid import Grid
from spcl_fast.segmentation.data.scan import Scan
from spcl_fast.segmentation.runs.dataset import DataConfig
from spcl_fast.segmentation.runs.run import read_metadata

_KEY = "trained_on"


@dataclass(frozen=True)
class PretrainedOn:
    """The training scans of a pre-training, and of those that it started from.

    Attributes:
        patients: Folder of the data set and name of each patient.
        files: Name and size in bytes of each image.
        grid: Size and spacing of the grid; None if they are not known.
    """

    patients: frozenset[tuple[str, str]] = frozenset()
    files: frozenset[tuple[str, int]] = frozenset()
    grid: Grid | None = None

    def metadata(self) -> dict[str, str]:
        """Return the entries of a safetensors file."""
        content = {"patients": sorted(self.patients), "files": sorted(self.files)}
        entries = {_KEY: json.dumps(content)}
        if self.grid is None:
            return entries
        size, spacing_mm = str(self.grid.size), str(self.grid.spacing_mm)
        return entries | {"grid_size": size, "grid_spacing_mm": spacing_mm}

    def seen_of(self, data: DataConfig, scans: Sequence[Scan]) -> list[str]:
        """Return the names of the patients that were trained on, sorted."""
        root = _root(data)
        return sorted(
            {
                scan.patient
                for scan in scans
                if (root, scan.patient) in self.patients or _file(scan) in self.files
            }
        )


def pretrained_on(data: DataConfig, scans: Sequence[Scan], init: Path | None) -> PretrainedOn:
    """Return what a pre-training sees: its training scans and those of the run it starts from.

    Raises:
        CheckpointError: `init` cannot be read.
    """
    before = PretrainedOn() if init is None else (read_pretrained_on(init) or PretrainedOn())
    root = _root(data)
    return PretrainedOn(
        patients=before.patients | {(root, scan.patient) for scan in scans},
        files=before.files | {_file(scan) for scan in scans},
        grid=data.grid,
    )


def read_pretrained_on(init: Path) -> PretrainedOn | None:
    """Return what the encoder of a run folder or a file was trained on; None if it does not say.

    Raises:
        CheckpointError: It is missing or unreadable.
    """
    metadata = read_metadata(init if init.is_file() else init / "encoder.safetensors")
    if _KEY not in metadata:
        return None
    content = json.loads(metadata[_KEY])
    size, spacing_mm = metadata.get("grid_size"), metadata.get("grid_spacing_mm")
    return PretrainedOn(
        patients=frozenset((root, name) for root, name in content["patients"]),
        files=frozenset((name, number) for name, number in content["files"]),
        grid=Grid(int(size), float(spacing_mm)) if size and spacing_mm else None,
    )


def _root(data: DataConfig) -> str:
    return str((data.root or data.cache / "phantom").resolve())


def _file(scan: Scan) -> tuple[str, int]:
    return scan.image.name, scan.image.stat().st_size
