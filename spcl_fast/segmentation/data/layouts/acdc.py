"""The layout of ACDC.

    <root>/<patient>/Info.cfg                        "Key: value" lines: ED and ES frame, Group
    <root>/<patient>/<patient>_frame01.nii.gz        image, the frame number in two digits
    <root>/<patient>/<patient>_frame01_gt.nii.gz     labels

Which frame is end-diastole is read from Info.cfg; it is not always frame 1. Folders may have any
name. Meta-label: group, where Info.cfg has one. The data: Bernard et al., TMI 2018,
doi 10.1109/TMI.2018.2837502.
"""

from __future__ import annotations

from pathlib import Path

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.layouts.cases import Case, attempt, existing, folders, strict
from spcl_fast.segmentation.data.scan import PHASES, SHORT_AXIS_CLASSES, Scan

NAME = "acdc"
_SUBFOLDERS = (".", "training", "database", "database/training")


def recognises(root: Path) -> bool:
    """Return whether some folder here is called patient... or has an Info.cfg."""
    parents = folders(root, _SUBFOLDERS)
    return any(_is_marked(folder) for parent in parents for folder in parent.iterdir())


def class_names(root: Path) -> tuple[str, ...]:
    """Return the names of the classes, the background first."""
    return SHORT_AXIS_CLASSES


def find_scans(root: Path | str) -> list[Scan]:
    """Find the labelled scans below a folder; file contents are not read.

    Args:
        root: folder of the patient folders, or one that holds them as ``training``, ``database`` or
            ``database/training``; the first of these with patients is used.

    Returns:
        Two scans (ED, ES) a patient, sorted by name.

    Raises:
        DataError: if root or its patients are missing, or a patient lacks Info.cfg, the keys ED
            and ES, an image or a ``_gt`` file.
    """
    return strict(find_cases(Path(root)))


def find_cases(root: Path) -> list[Case]:
    """Find the scans of each patient, or what is wrong with the patient.

    Raises:
        DataError: if root is not a folder or holds no patient.
    """
    return [attempt(_patient_scans, folder) for folder in _patient_folders(root)]


def _patient_folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise DataError(f"{root} must be a folder in ACDC layout, got no such folder.")
    for parent in folders(root, _SUBFOLDERS):
        if patients := sorted(filter(_is_patient, parent.iterdir())):
            return patients
    raise DataError(
        f"{root} must hold patient folders with an Info.cfg, directly or under training/, got none."
    )


def _is_marked(folder: Path) -> bool:
    if folder.name.startswith(".") or not folder.is_dir():
        return False
    return folder.name.startswith("patient") or (folder / "Info.cfg").exists()


def _is_patient(folder: Path) -> bool:
    if folder.name.startswith(".") or not folder.is_dir():
        return False
    return _is_marked(folder) or any(folder.glob("*.nii*"))


def _patient_scans(folder: Path) -> list[Scan]:
    """The ED and the ES scan of one patient folder."""
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
    stem = folder / name
    paths = Path(f"{stem}.nii.gz"), Path(f"{stem}.nii")
    return existing(*paths, because="Info.cfg names this frame")
