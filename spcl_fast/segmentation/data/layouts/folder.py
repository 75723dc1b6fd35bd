"""The layout of own data: images, labels of some of them, names of the classes.

    <root>/images/<scan>.nii.gz                  or .nii, .mhd, .mha, .h5
    <root>/labels/<scan>.nii.gz                  of the same name, for any number of the images
    <root>/classes.txt                           names of the classes 0, 1, ..., one a line

Without labels there need be no classes.txt. Scans of one patient may share a folder,
``images/<patient>/<scan>.nii.gz`` and ``labels/<patient>/<scan>.nii.gz``; else every scan is a
patient, unless the CSV file has the columns scan and patient. There is no cardiac phase.
"""

from __future__ import annotations

from pathlib import Path

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.image_file import SUFFIXES, suffix_of
from spcl_fast.segmentation.data.layouts.layout import (
    FIRST_CHANNEL,
    Choice,
    LayoutReader,
    ScansOrError,
    attempt,
)
from spcl_fast.segmentation.data.metadata_csv import read_text
from spcl_fast.segmentation.data.scan import Scan

CLASSES_FILE = "classes.txt"


def _recognises(root: Path) -> bool:
    """Return whether a folder images is here, and no dataset.json."""
    return (root / "images").is_dir() and not (root / "dataset.json").exists()


def _names(root: Path) -> tuple[str, ...]:
    path = root / CLASSES_FILE
    if not path.exists() and not _files(root / "labels"):
        return ("background",)
    try:
        names = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} must name the classes of the labels, background first, one a line, "
            f"got {error}."
        ) from error
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"{path} must have two or more lines, all different, got {len(names)}.")
    return names


def _find(root: Path, choice: Choice = FIRST_CHANNEL) -> list[ScansOrError]:
    names, images, masks = _names(root), _files(root / "images"), _files(root / "labels")
    return [
        attempt(_case_scans, root, case, images.get(case, []), masks.get(case, []), names)
        for case in sorted(images.keys() | masks.keys())
    ]


def _files(folder: Path) -> dict[str, list[Path]]:
    """Return the images below a folder by their path in it, without the suffix."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if suffix_of(path) and path.is_file() and not any(part[0] == "." for part in parts):
            case = "/".join(parts)[: -len(suffix_of(path))]
            found.setdefault(case, []).append(path)
    return found


def _case_scans(
    root: Path, case: str, images: list[Path], masks: list[Path], names: tuple[str, ...]
) -> list[Scan]:
    for folder, paths in (("images", images), ("labels", masks)):
        if len(paths) > 1:
            listed = " and ".join(path.name for path in paths)
            raise DataError(f"{root / folder} must hold one file of {case}, got {listed}.")
    if not images:
        kinds = ", ".join(SUFFIXES)
        raise DataError(f"{root / 'images' / case} must exist ({kinds}), got {masks[0]} alone.")
    name = case.replace("/", "_")
    patient = case.split("/")[0]
    return [Scan(name, patient, None, images[0], masks[0] if masks else None, class_names=names)]


LAYOUT = LayoutReader(_recognises, _names, _find)
