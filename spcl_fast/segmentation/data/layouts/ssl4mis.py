"""The layout of SSL4MIS: ACDC as HDF5 volumes.

    <root>/data/patient001_frame01.h5      arrays image and label (or none), (slice, row, column)
    <root>/train.list, val.list, test.list     names of volumes, one per line, if present

The root may also be the folder of the volumes; data/slices is not used. Of the two frames of a
patient the first is end-diastole, the second end-systole; a patient with another number of frames
has no known phase. Meta-label: subset, the list that names the volume.

The files carry no voxel size: 1.5 x 1.5 x 10 mm is assumed for all, so distances are nominal.
Classes are those of ACDC. Reading needs h5py.
"""

from __future__ import annotations

import re
from pathlib import Path

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.image_file import has_dataset
from spcl_fast.segmentation.data.layouts.layout import (
    FIRST_CHANNEL,
    Choice,
    LayoutReader,
    ScansOrError,
    folders,
)
from spcl_fast.segmentation.data.metadata_csv import read_text
from spcl_fast.segmentation.data.scan import PHASES, SHORT_AXIS_CLASSES, Scan

SUBSETS = ("train", "val", "test")
_FILE = re.compile(r"(?P<patient>[^.].*)_frame\d+\.h5")


def _recognises(root: Path) -> bool:
    """Return whether some <patient>_frame<number>.h5 is here."""
    return bool(_volumes(root))


def _find(root: Path, choice: Choice = FIRST_CHANNEL) -> list[ScansOrError]:
    """Return the scans of each patient, and errors for listed volumes that do not exist."""
    volumes = _volumes(root)
    subsets, missing = _read_lists(root, {path.stem for path in volumes})
    paths_of: dict[str, list[Path]] = {}
    for path, patient in sorted(volumes.items()):
        paths_of.setdefault(patient, []).append(path)
    found: list[ScansOrError] = list(missing)
    for patient, paths in paths_of.items():
        phases = PHASES if len(paths) == len(PHASES) else [None] * len(paths)
        metas = ({"subset": subsets[p.stem]} if p.stem in subsets else {} for p in paths)
        rows = zip(paths, phases, metas, strict=True)
        found.append([Scan(p.stem, patient, phase, p, _mask(p), m) for p, phase, m in rows])
    return found


def _mask(path: Path) -> Path | None:
    return path if has_dataset(path, "label") else None


def _volumes(root: Path) -> dict[Path, str]:
    """Return the patient of each volume."""
    for parent in folders(root, ("data", ".")):
        found = {path: _FILE.fullmatch(path.name) for path in parent.glob("*.h5")}
        if volumes := {path: match["patient"] for path, match in found.items() if match}:
            return volumes
    return {}


def _read_lists(root: Path, names: set[str]) -> tuple[dict[str, str], list[DataError]]:
    """Return the list that names each volume, and the names without a volume."""
    subsets: dict[str, str] = {}
    missing = []
    for subset in SUBSETS:
        path = root / f"{subset}.list"
        lines = read_text(path, errors="replace") if path.is_file() else ""
        for name in lines.split():
            if name in names:
                subsets[name] = subset
            else:
                missing.append(DataError(f"{path} must name volumes in data/, got '{name}'."))
    return subsets, missing


LAYOUT = LayoutReader(_recognises, lambda root: SHORT_AXIS_CLASSES, _find)
