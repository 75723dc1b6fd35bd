"""The layout of ACDC.

    <root>/<patient>/Info.cfg                        "Key: value" lines: ED and ES frame, Group
    <root>/<patient>/<patient>_frame01.nii.gz        image, the frame number in two digits
    <root>/<patient>/<patient>_frame01_gt.nii.gz     labels, if there are any

The root may also hold the patients in training, database or database/training; the first of these
with patients is used. Which frame is end-diastole is read from Info.cfg; it is not always frame 1.
Folders may have any name. The patients of testing or database/testing are taken on request.
Meta-label: group, where Info.cfg has one.

The data: Bernard et al., TMI 2018, doi 10.1109/TMI.2018.2837502.
"""

from __future__ import annotations

from pathlib import Path

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.image_file import NIFTI_SUFFIXES
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
    with_suffix,
)
from spcl_fast.segmentation.data.metadata_csv import read_text
from spcl_fast.segmentation.data.scan import PHASES, SHORT_AXIS_CLASSES, Scan

_SUBFOLDERS = (".", "training", "database", "database/training")
_TESTING = ("testing", "database/testing")


def _recognises(root: Path) -> bool:
    """Return whether some folder here is called patient... or has an Info.cfg."""
    parents = folders(root, _SUBFOLDERS)
    return any(_is_marked(folder) for parent in parents for folder in parent.iterdir())


def _find(root: Path, choice: Choice = FIRST_CHANNEL) -> list[ScansOrError]:
    patients: list[Path] = []
    for parent in folders(root, _SUBFOLDERS):
        if patients := sorted(filter(_is_patient, parent.iterdir())):
            break
    if choice.unlabelled_folders:
        patients += sorted(
            folder for p in folders(root, _TESTING) for folder in p.iterdir() if _is_patient(folder)
        )
    return [attempt(_patient_scans, folder) for folder in patients]


def _is_marked(folder: Path) -> bool:
    if folder.name.startswith(".") or not folder.is_dir():
        return False
    return folder.name.startswith("patient") or (folder / "Info.cfg").exists()


def _is_patient(folder: Path) -> bool:
    if folder.name.startswith(".") or not folder.is_dir():
        return False
    return _is_marked(folder) or any(folder.glob("*.nii*"))


def _patient_scans(folder: Path) -> list[Scan]:
    """Return the ED and the ES scan of one patient folder."""
    path, patient = folder / "Info.cfg", folder.name
    info = _read_info(path)
    for phase in PHASES:
        if phase not in info:
            raise DataError(f"{path} must have a line '{phase}: <frame number>', got none.")
    group = {"group": info["Group"]} if info.get("Group") else {}
    scans = []
    for phase, frame in phase_frames(info, patient, path).items():
        name = frame_name(patient, frame)
        image = with_suffix(folder / name, NIFTI_SUFFIXES, "Info.cfg names this frame")
        mask = mask_of(folder / f"{name}_gt", NIFTI_SUFFIXES)
        scans.append(Scan(name, patient, phase, image, mask, group))
    return scans


def _read_info(path: Path) -> dict[str, str]:
    try:
        lines = read_text(path, errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"{path} must exist and name the ED and ES frames, got {error}.") from error
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


LAYOUT = LayoutReader(_recognises, lambda root: SHORT_AXIS_CLASSES, _find)
