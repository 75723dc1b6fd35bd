"""Finding scans in the on-disk layout of ACDC.

    <root>/<patient>/Info.cfg                        "Key: value" lines: ED and ES frame, Group
    <root>/<patient>/<patient>_frame01.nii.gz        image, the frame number in two digits
    <root>/<patient>/<patient>_frame01_gt.nii.gz     labels

Which frame is end-diastole is read from Info.cfg; it is not always frame 1. Folders may have any
name. The data: Bernard et al., TMI 2018, doi 10.1109/TMI.2018.2837502.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spcl_fast.data.scan import DataError, Scan

CLASS_NAMES = ("background", "RV", "MYO", "LV")
PHASES = ("ED", "ES")
RESERVED_COLUMNS = ("phase", "position", "self")  # meta-labels that every data set has
_SUBFOLDERS = (".", "training", "database", "database/training")


@dataclass(frozen=True)
class Metadata:
    """The rows of a metadata CSV file.

    Attributes:
        path: the file.
        key: ``"scan"`` or ``"patient"``: what a row describes.
        columns: names of the meta-labels, in file order.
        rows: meta-labels of each key; an empty cell is left out, that is, unknown.
    """

    path: Path
    key: str
    columns: tuple[str, ...]
    rows: dict[str, dict[str, str]]


def find_scans(root: Path | str, csv: Path | str | None = None) -> list[Scan]:
    """Find the labelled scans below a folder; file contents are not read.

    Args:
        root: folder of the patient folders, or one that holds them as ``training``, ``database`` or
            ``database/training``; the first of these with patients is used.
        csv: metadata file, see `read_metadata_csv`.

    Returns:
        Two scans (ED, ES) a patient, sorted by name. ``meta`` holds ``group`` where Info.cfg has
        it, and the columns of the CSV file.

    Raises:
        DataError: if root or its patients are missing, or a patient lacks Info.cfg, the keys ED
            and ES, an image or a ``_gt`` file, or the CSV file is not as described.
    """
    scans = [scan for folder in patient_folders(root) for scan in patient_scans(folder)]
    scans.sort(key=lambda scan: scan.name)
    return scans if csv is None else with_metadata(scans, read_metadata_csv(csv))


def patient_folders(root: Path | str) -> list[Path]:
    """List the patient folders below root, sorted.

    Raises:
        DataError: if root is not a folder or holds no patient.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root} must be a folder in ACDC layout, got no such folder.")
    for name in _SUBFOLDERS:
        parent = root / name
        if parent.is_dir() and (folders := sorted(filter(_is_patient, parent.iterdir()))):
            return folders
    raise DataError(
        f"{root} must hold patient folders with an Info.cfg, directly or under training/, got none."
    )


def _is_patient(folder: Path) -> bool:
    if folder.name.startswith(".") or not folder.is_dir():
        return False
    marks = (folder.name.startswith("patient"), (folder / "Info.cfg").exists())
    return any(marks) or any(folder.glob("*.nii*"))


def patient_scans(folder: Path) -> list[Scan]:
    """Find the ED and the ES scan of one patient folder.

    Raises:
        DataError: if Info.cfg, one of its keys ED and ES, an image or a ``_gt`` file is missing.
    """
    info_path = folder / "Info.cfg"
    info = _read_info(info_path)
    group = {"group": info["Group"]} if info.get("Group") else {}
    scans = []
    for phase in PHASES:
        if phase not in info:
            raise DataError(f"{info_path} must have a line '{phase}: <frame number>', got none.")
        if not info[phase].isdecimal():
            raise DataError(f"{info_path} must give {phase} as a number, got '{info[phase]}'.")
        name = f"{folder.name}_frame{int(info[phase]):02d}"
        image, mask = _nifti(folder, name), _nifti(folder, f"{name}_gt")
        scans.append(Scan(name, folder.name, phase, image, mask, group))
    if scans[0].name == scans[1].name:
        raise DataError(
            f"{info_path} must give different frames for ED and ES, got {info['ED']} twice."
        )
    return scans


def _read_info(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"{path} must exist and give the ED and ES frames, got {error}.") from error
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _nifti(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.nii.gz", folder / f"{name}.nii"):
        if path.is_file():
            return path
    raise DataError(
        f"{folder / name}.nii.gz must exist (Info.cfg names this frame), got no such file."
    )


def read_metadata_csv(path: Path | str) -> Metadata:
    """Read meta-labels from a CSV file with a header row.

    The column ``scan`` (or else ``patient``) says which scan (or patient) a row describes; every
    other column becomes a meta-label. An empty cell means unknown. With both, ``patient`` is
    ignored.

    Args:
        path: comma-separated UTF-8 file.

    Raises:
        DataError: if the file is unreadable, lacks both key columns, repeats a column or a key,
            uses a name every data set has (phase, position, self), or has a row of another length
            than the header.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = [[cell.strip() for cell in row] for row in csv.reader(file) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} must be a readable UTF-8 CSV file, got {error}.") from error
    header = table[0] if table else []
    key = next((name for name in ("scan", "patient") if name in header), None)
    if key is None:
        raise DataError(f"{path} must have a column 'scan' or 'patient', got {header}.")
    for name in header:
        if header.count(name) > 1 or not name or name in RESERVED_COLUMNS:
            reason = "reserved" if name in RESERVED_COLUMNS else "empty or repeated"
            raise DataError(
                f"{path} must name its columns uniquely, got the {reason} name '{name}'."
            )
    columns = tuple(name for name in header if name not in ("scan", "patient"))
    rows: dict[str, dict[str, str]] = {}
    for number, cells in enumerate(table[1:], start=2):
        if len(cells) != len(header):
            raise DataError(
                f"{path} must have {len(header)} cells in row {number}, got {len(cells)}."
            )
        values = dict(zip(header, cells, strict=True))
        if values[key] in rows:
            raise DataError(f"{path} must list each {key} once, got '{values[key]}' twice.")
        rows[values[key]] = {name: values[name] for name in columns if values[name]}
    return Metadata(path, key, columns, rows)


def with_metadata(scans: Sequence[Scan], metadata: Metadata) -> list[Scan]:
    """Add the columns of a CSV file to the ``meta`` of the scans.

    A scan without a row stays as it is: unknown.

    Raises:
        DataError: if a row of the file matches no scan.
    """
    field = "name" if metadata.key == "scan" else "patient"
    known = {getattr(scan, field) for scan in scans}
    for key in metadata.rows:
        if key not in known:
            example = min(known, default="none")
            raise DataError(
                f"{metadata.path} must list a known {metadata.key} in every row, got '{key}' "
                f"(an example of a known {metadata.key}: '{example}')."
            )
    return [
        replace(scan, meta={**scan.meta, **metadata.rows.get(getattr(scan, field), {})})
        for scan in scans
    ]
