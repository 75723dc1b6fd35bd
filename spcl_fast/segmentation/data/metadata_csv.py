"""Meta-labels from a CSV file, for scans of any layout."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.scan import Scan

RESERVED_COLUMNS = ("phase", "position", "self")  # meta-labels that every data set has
KEY_COLUMNS = ("scan", "patient", "slice")


@dataclass(frozen=True)
class Metadata:
    """The rows of a metadata CSV file.

    Attributes:
        path: The file.
        key: ``"scan"`` or ``"patient"``: what a row describes.
        columns: Names of the meta-labels, in file order.
        rows: Meta-labels of each key; empty cells (unknown) are left out.
        slice_rows: The same of each scan and slice, instead, where the file has both columns.
        patients: Patient of each scan, where the file has both columns.
    """

    path: Path
    key: str
    columns: tuple[str, ...]
    rows: dict[str, dict[str, str]]
    slice_rows: dict[str, dict[int, dict[str, str]]] = field(default_factory=dict)
    patients: dict[str, str] = field(default_factory=dict)


def read_text(path: Path, errors: str = "strict") -> str:
    """Return the text of a file in UTF-8, with or without its mark, or UTF-16 with its mark.

    Raises:
        OSError: The file is unreadable.
        UnicodeDecodeError: It is of another encoding, and `errors` is ``"strict"``.
    """
    content = path.read_bytes()
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_utf16 else "utf-8-sig", errors)


def read_table(path: Path) -> list[list[str]]:
    """Return the cells of a comma-separated file stripped of outer blanks, without blank rows.

    Raises:
        DataError: The file is unreadable.
    """
    try:
        rows = csv.reader(io.StringIO(read_text(path), newline=""))
        return [[cell.strip() for cell in row] for row in rows if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} must be a readable UTF-8 CSV file, got {error}.") from error


def read_metadata_csv(path: Path | str) -> Metadata:
    """Read meta-labels from a CSV file with a header row.

    The column ``scan`` (or else ``patient``) says which scan (or patient) a row describes; every
    other column becomes a meta-label. An empty cell means unknown. With both, ``patient`` says
    which scans are one patient's. With ``scan`` and ``slice``, a row describes one slice, counted
    from 0 in the order of the file.

    Args:
        path: Comma-separated UTF-8 file.

    Raises:
        DataError: The file is unreadable, lacks both key columns, repeats a column or a key,
            uses a reserved name (phase, position, self), has a row of another length than the
            header, or a slice that is not a number.
    """
    path = Path(path)
    table = read_table(path)
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
    if "slice" in header and key != "scan":
        raise DataError(f"{path} must have a column 'scan' beside 'slice', got {header}.")
    columns = tuple(name for name in header if name not in KEY_COLUMNS)
    found = Metadata(path, key, columns, {})
    for number, cells in enumerate(table[1:], start=2):
        if len(cells) != len(header):
            raise DataError(
                f"{path} must have {len(header)} cells in row {number}, got {len(cells)}."
            )
        _add_row(found, dict(zip(header, cells, strict=True)))
    return found


def _add_row(found: Metadata, values: dict[str, str]) -> None:
    """Add a row of the file, cells by column."""
    path, name = found.path, values[found.key]
    row = {column: values[column] for column in found.columns if values[column]}
    if found.key == "scan" and values.get("patient"):
        patient = found.patients.setdefault(name, values["patient"])
        if patient != values["patient"]:
            raise DataError(f"{path} must give {name} one patient, got {patient} and another.")
    if "slice" in values:
        place = values["slice"]
        if not (place.isascii() and place.isdigit()):
            raise DataError(f"{path} must number slices 0, 1, ..., got {place!r} for {name}.")
        slices = found.slice_rows.setdefault(name, {})
        if int(place) in slices:
            raise DataError(f"{path} must list each slice once, got {name} {place} twice.")
        slices[int(place)] = row
    elif name in found.rows:
        raise DataError(f"{path} must list each {found.key} once, got '{name}' twice.")
    else:
        found.rows[name] = row


def with_metadata(scans: Sequence[Scan], metadata: Metadata) -> list[Scan]:
    """Add the columns of a CSV file to the ``meta`` of the scans.

    A scan without a row stays as it is: unknown.

    Raises:
        DataError: A row of the file matches no scan.
    """
    attribute = "name" if metadata.key == "scan" else "patient"
    known = {getattr(scan, attribute) for scan in scans}
    for key in (*metadata.rows, *metadata.slice_rows):
        if key not in known:
            example = min(known, default="none")
            raise DataError(
                f"{metadata.path} must list a known {metadata.key} in every row, got '{key}' "
                f"(an example of a known {metadata.key}: '{example}')."
            )
    return [
        replace(
            scan,
            meta={**scan.meta, **metadata.rows.get(getattr(scan, attribute), {})},
            slice_meta={**scan.slice_meta, **_slice_columns(metadata, scan.name)},
            patient=metadata.patients.get(scan.name, scan.patient),
        )
        for scan in scans
    ]


def _slice_columns(metadata: Metadata, scan: str) -> dict[str, dict[int, str]]:
    """Return the meta-labels of the slices of a scan, by name and slice."""
    rows = metadata.slice_rows.get(scan)
    if rows is None:
        return {}
    return {
        name: {place: row[name] for place, row in rows.items() if name in row}
        for name in metadata.columns
    }
