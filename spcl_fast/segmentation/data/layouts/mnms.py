"""The layout of M&Ms: short-axis cine stacks of several vendors and centres.

    <root>/*Dataset*information*.csv                         one row per patient, see below
    <root>/Training/Labeled/<id>/<id>_sa.nii.gz              4-D: x, y, z, frame
    <root>/Training/Labeled/<id>/<id>_sa_gt.nii.gz           4-D, labels in the frames ED and ES

The root may also be Labeled, Validation or Testing; the CSV file is then looked for in the two
folders above as well. Its columns External code, ED and ES (frames from 0) are needed; Vendor,
Centre and Pathology become the meta-labels vendor, centre and group. A case without a ``_gt`` file
has no labels; those of Training/Unlabeled have none and are taken on request.

The files number LV 1, MYO 2, RV 3. Classes here are those of ACDC: RV 1, MYO 2, LV 3. The data:
Campello et al., TMI 2021, doi 10.1109/TMI.2021.3090082.
"""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.layouts.layout import (
    FIRST_CHANNEL,
    Choice,
    LayoutReader,
    ScansOrError,
    attempt,
    folders,
    frame_name,
    mask_of,
    phase_frames,
)
from spcl_fast.segmentation.data.metadata_csv import read_table
from spcl_fast.segmentation.data.scan import PHASES, SHORT_AXIS_CLASSES, Scan

CLASSES = {0: 0, 1: 3, 2: 2, 3: 1}  # value in the files: class
META_LABELS = {"Vendor": "vendor", "Centre": "centre", "Pathology": "group"}
_SUBFOLDERS = (".", "Labeled", "Training/Labeled")
_UNLABELLED = ("Unlabeled", "Training/Unlabeled")
_KEY = "External code"


def _recognises(root: Path) -> bool:
    """Return whether some <id>/<id>_sa_gt.nii.gz is here."""
    return any(
        any(parent.glob("[!.]*/[!.]*_sa_gt.nii.gz")) for parent in folders(root, _SUBFOLDERS)
    )


def _find(root: Path, choice: Choice = FIRST_CHANNEL) -> list[ScansOrError]:
    path = _information_file(root)
    rows = _read_information(path)
    images: list[Path] = []
    for parent in folders(root, _SUBFOLDERS):
        if images := _images(parent):
            break
    if choice.unlabelled_folders:
        images += [image for parent in folders(root, _UNLABELLED) for image in _images(parent)]
    return [attempt(_patient_scans, image, path, rows) for image in images]


def _images(parent: Path) -> list[Path]:
    return sorted(parent.glob("[!.]*/[!.]*_sa.nii.gz"))


def _information_file(root: Path) -> Path:
    for folder in (root, *root.resolve().parents[:2]):
        if found := sorted(folder.glob("*[Dd]ataset*[Ii]nformation*.csv")):
            return found[-1]
    raise DataError(f"{root} must hold the CSV file of M&Ms that names ED and ES, got none.")


def _read_information(path: Path) -> dict[str, dict[str, str]]:
    header, *rows = read_table(path) or [[]]
    for column in (_KEY, *PHASES):
        if column not in header or not rows:
            raise DataError(f"{path} must have a column '{column}', got none.")
    table = [dict(zip_longest(header, row[: len(header)], fillvalue="")) for row in rows]
    return {row[_KEY]: row for row in table}


def _patient_scans(image: Path, path: Path, rows: dict[str, dict[str, str]]) -> list[Scan]:
    patient = image.name.removesuffix("_sa.nii.gz")
    mask = mask_of(image.with_name(f"{patient}_sa_gt"), (".nii.gz",))
    row = rows.get(patient)
    if row is None:
        raise DataError(f"{path} must have a row for {patient}, got none.")
    meta = {name: row[key] for key, name in META_LABELS.items() if row.get(key)}
    return [
        Scan(frame_name(patient, frame), patient, phase, image, mask, meta, frame, classes=CLASSES)
        for phase, frame in phase_frames(row, patient, path).items()
    ]


LAYOUT = LayoutReader(_recognises, lambda root: SHORT_AXIS_CLASSES, _find)
