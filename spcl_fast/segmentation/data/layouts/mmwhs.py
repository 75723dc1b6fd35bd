"""The layout of MM-WHS 2017: whole hearts in CT and MR.

    <root>/ct_train/ct_train_1001_image.nii.gz     and ..._label.nii.gz
    <root>/mr_train/mr_train_1001_image.nii.gz     and ..._label.nii.gz

The root may also be one of the two folders. ct_test and mr_test have no labels and are left out.
Meta-label: modality, ``ct`` or ``mr``. There is no cardiac phase.

Slices are stacked along the third voxel axis as stored: axial for CT, the stack that was acquired
for MR. Nothing is reoriented, so position labels compare volumes of one modality, not CT with MR.

Two sets of classes: all seven structures (layout ``mmwhs``), or the four that work on adapting CT
to MR and SPCL use (``mmwhs4``); the other three are background then. So is any value that stands
for no structure: the published labels hold a few strays. The data: Zhuang and Shen, Medical Image
Analysis 2016, doi 10.1016/j.media.2016.02.006.
"""

from __future__ import annotations

import re
from pathlib import Path

from spcl_fast.segmentation.data.layouts.cases import Case, attempt, existing, folders, strict
from spcl_fast.segmentation.data.scan import OTHER_VALUES, Scan

NAME = "mmwhs"
NAME_OF_FOUR = "mmwhs4"
VALUES = {  # in the files
    **{"LV": 500, "RV": 600, "LA": 420, "RA": 550},  # blood cavities
    **{"MYO": 205, "AA": 820, "PA": 850},  # left ventricular muscle, aorta, pulmonary artery
}
CLASS_NAMES = ("background", *VALUES)
FOUR_CLASS_NAMES = ("background", "AA", "LA", "LV", "MYO")
_MODALITIES = ("ct", "mr")
_FILE = re.compile(r"((ct|mr)_train_\w+)_(?:image|label)\.nii(?:\.gz)?")


def recognises(root: Path) -> bool:
    """Return whether some ct_train_... or mr_train_..._label.nii.gz is here."""
    return any("_label." in path.name for path in _files(root))


def class_names(root: Path) -> tuple[str, ...]:
    """Return the names of the eight classes, the background first."""
    return CLASS_NAMES


def class_names_of_four(root: Path) -> tuple[str, ...]:
    """Return the names of the five classes, the background first."""
    return FOUR_CLASS_NAMES


def find_scans(root: Path | str, names: tuple[str, ...] = CLASS_NAMES) -> list[Scan]:
    """Find the labelled scans below a folder, sorted by name; file contents are not read.

    Args:
        root: folder that holds ct_train, mr_train or both, or one of these two.
        names: class names, ``CLASS_NAMES`` or ``FOUR_CLASS_NAMES``.

    Raises:
        DataError: if an image lacks its labels or labels lack their image.
    """
    return strict(find_cases(Path(root), names))


def find_cases(root: Path, names: tuple[str, ...] = CLASS_NAMES) -> list[Case]:
    """Find the scan of each volume, or what is wrong with it."""
    stems = {path.parent / match[1] for path, match in _files(root).items()}
    return [attempt(_case_scans, stem, names) for stem in sorted(stems)]


def find_cases_of_four(root: Path) -> list[Case]:
    """Find cases with the labels of ``FOUR_CLASS_NAMES``."""
    return find_cases(root, FOUR_CLASS_NAMES)


def _files(root: Path) -> dict[Path, re.Match[str]]:
    parents = folders(root, [".", *(f"{modality}_train" for modality in _MODALITIES)])
    paths = (path for parent in parents for path in parent.iterdir())
    return {path: match for path in paths if (match := _FILE.fullmatch(path.name))}


def _case_scans(stem: Path, names: tuple[str, ...]) -> list[Scan]:
    image, mask = (
        existing(
            *(Path(f"{stem}_{part}{end}") for end in (".nii.gz", ".nii")),
            because="a case is an image and its labels",
        )
        for part in ("image", "label")
    )
    classes = {VALUES[name]: number for number, name in enumerate(names) if number}
    return [
        Scan(
            name=stem.name,
            patient=stem.name,
            phase=None,
            image=image,
            mask=mask,
            meta={"modality": stem.name[:2]},
            classes={0: 0, OTHER_VALUES: 0, **classes},
            class_names=names,
        )
    ]
