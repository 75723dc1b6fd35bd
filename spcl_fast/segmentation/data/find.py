"""Find a data set: recognise its layout, list its scans and add the meta-labels of a CSV file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.layouts import (
    LayoutName,
    acdc,
    folder,
    mmwhs,
    mnms,
    msd,
    promise12,
    ssl4mis,
)
from spcl_fast.segmentation.data.layouts.layout import FIRST_CHANNEL, Choice, ScansOrError
from spcl_fast.segmentation.data.metadata_csv import read_metadata_csv, with_metadata
from spcl_fast.segmentation.data.scan import Scan

LAYOUTS = {
    "acdc": acdc.LAYOUT,
    "promise12": promise12.LAYOUT,
    "mmwhs": mmwhs.LAYOUT,
    "mmwhs4": mmwhs.LAYOUT_OF_FOUR,
    "msd": msd.LAYOUT,
    "mnms": mnms.LAYOUT,
    "ssl4mis": ssl4mis.LAYOUT,
    "folder": folder.LAYOUT,
}


@dataclass(frozen=True)
class DataSet:
    """The scans below a folder.

    Attributes:
        layout: Name of the layout.
        class_names: Names of the classes 0, 1, ..., the background first.
        scans: The scans, sorted by name.
    """

    layout: str
    class_names: tuple[str, ...]
    scans: list[Scan]


def recognise(root: Path | str) -> str:
    """Return the name of the layout that a folder has.

    Raises:
        DataError: `root` is not a folder, or has none or several of the layouts.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root} must be a folder, got no such folder.")
    found = [name for name, layout in LAYOUTS.items() if layout.recognises(root)]
    if len(found) != 1:
        known = ", ".join(LAYOUTS)
        raise DataError(
            f"{root} must be a folder in one of the layouts {known}, "
            f"got {' and '.join(found) + ': choose one' if found else 'none of them'}."
        )
    return found[0]


def find_data(
    root: Path | str,
    csv: Path | str | None = None,
    layout: LayoutName = "auto",
    problems: list[str] | None = None,
    choice: Choice = FIRST_CHANNEL,
) -> DataSet:
    """Find the scans below a folder; images are not read.

    Args:
        root: Folder in one of the layouts of `spcl_fast.segmentation.data.layouts`.
        csv: Further meta-labels, see `spcl_fast.segmentation.data.metadata_csv.read_metadata_csv`.
        layout: Name of the layout; ``"auto"`` recognises it.
        problems: List that receives one sentence per faulty case or CSV file; the other cases are
            still returned. None: the first fault is raised.
        choice: What is read of images with several channels.

    Returns:
        The scans by name. Cases that share a name are called by the folders that tell them apart
        too, such as ``siteA_case1``.

    Raises:
        DataError: `root` is not a folder in that layout, a case is incomplete, two cases cannot be
            told apart by their folders, or the CSV file does not fit.
    """
    root = Path(root)
    name = recognise(root) if layout == "auto" else layout
    if name not in LAYOUTS or not root.is_dir():
        raise DataError(f"{root} must be a folder in layout {name}, got no such folder or layout.")
    if choice.channel and name != "msd":
        raise DataError(f"channel must be 0 in layout {name}, got {choice.channel}.")
    found = LAYOUTS[name].find(root, choice)
    if not found:
        raise DataError(f"{root} must hold scans in layout {name}, got none.")
    if problems is not None:
        problems += [str(one) for one in found if isinstance(one, DataError)]
        found = [one for one in found if not isinstance(one, DataError)]
    scans = _with_own_names(_all_scans(found), problems)
    if csv is not None:
        try:
            scans = with_metadata(scans, read_metadata_csv(csv))
        except DataError as error:
            if problems is None:
                raise
            problems.append(str(error))
    return DataSet(name, LAYOUTS[name].class_names(root), scans)


def _all_scans(found: Iterable[ScansOrError]) -> list[Scan]:
    """Return all scans, sorted by name, or raise the first error."""
    scans: list[Scan] = []
    for one in found:
        if isinstance(one, DataError):
            raise one
        scans += one
    return sorted(scans, key=lambda scan: scan.name)


def _with_own_names(scans: list[Scan], problems: list[str] | None) -> list[Scan]:
    """Return the scans with distinct names, sorted; a scan without one is raised or told."""
    counts = Counter(scan.name for scan in scans)
    patients = {scan.patient for scan in scans if counts[scan.name] > 1}
    named = [scan for scan in scans if scan.patient not in patients]
    for patient in patients:
        named += _told_apart([scan for scan in scans if scan.patient == patient])
    kept: dict[str, Scan] = {}
    for scan in sorted(named, key=lambda scan: scan.name):
        other = kept.setdefault(scan.name, scan)
        if other is not scan:
            message = (
                f"{scan.image} must have another name than {other.image}, "
                f"got {scan.name} for both cases."
            )
            if problems is None:
                raise DataError(message)
            problems.append(message)
    return list(kept.values())


def _told_apart(scans: Sequence[Scan]) -> list[Scan]:
    """Name scans of one patient name by the folders that not all of them have.

    Folders of masks tell patients apart; several images of one mask are one patient's.
    """
    masks = [(scan.mask or scan.image).parent.parts for scan in scans]
    images = [scan.image.parent.parts for scan in scans]
    are_patients = len(set(masks)) > 1
    folders = masks if are_patients else images
    shared = set.intersection(*map(set, folders))
    named = []
    for scan, parts in zip(scans, folders, strict=True):
        own = "".join(f"{part}_" for part in parts if part not in shared)
        patient = own + scan.patient if are_patients else scan.patient
        named.append(replace(scan, name=own + scan.name, patient=patient))
    return named
