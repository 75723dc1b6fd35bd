"""The layout of MM-WHS 2017: whole hearts in CT and MR.

    <root>/ct_train/ct_train_1001_image.nii.gz     and ..._label.nii.gz
    <root>/mr_train/mr_train_1001_image.nii.gz     and ..._label.nii.gz

The root may also be one of the two folders. A volume may have no labels; those of ct_test and
mr_test have none and are taken on request.
Meta-label: modality, ``ct`` or ``mr``. There is no cardiac phase.

Slices are stacked along the third voxel axis as stored: axial for CT, the stack that was acquired
for MR. Nothing is reoriented, so position labels compare volumes of one modality, not CT with MR.

Two sets of classes: all seven structures (layout ``mmwhs``), or the four used in the literature on
CT-to-MR adaptation and by SPCL (``mmwhs4``), with the other three as background. Values that belong
to no structure are background too: the published labels contain a few.

The data: Zhuang and Shen, Medical Image Analysis 2016, doi 10.1016/j.media.2016.02.006.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from spcl_fast.segmentation.data.image_file import NIFTI_SUFFIXES
from spcl_fast.segmentation.data.layouts.layout import (
    FIRST_CHANNEL,
    Choice,
    LayoutReader,
    ScansOrError,
    attempt,
    folders,
    mask_of,
    with_suffix,
)
from spcl_fast.segmentation.data.scan import OTHER_VALUES, Scan

VALUES = {  # in the files
    **{"LV": 500, "RV": 600, "LA": 420, "RA": 550},  # blood cavities
    **{"MYO": 205, "AA": 820, "PA": 850},  # left ventricular muscle, aorta, pulmonary artery
}
CLASS_NAMES = ("background", *VALUES)
FOUR_CLASS_NAMES = ("background", "AA", "LA", "LV", "MYO")
_MODALITIES = ("ct", "mr")
_FILE = re.compile(r"((ct|mr)_(?:train|test)_\w+)_(?:image|label)\.nii(?:\.gz)?")


def _recognises(root: Path) -> bool:
    """Return whether some ct_train_... or mr_train_..._label.nii.gz is here."""
    return any("_label." in path.name for path in _files(root))


def _find(
    root: Path, choice: Choice = FIRST_CHANNEL, names: tuple[str, ...] = CLASS_NAMES
) -> list[ScansOrError]:
    kinds = ("train", "test") if choice.unlabelled_folders else ("train",)
    stems = {path.parent / match[1] for path, match in _files(root, kinds).items()}
    return [attempt(_volume_scans, stem, names) for stem in sorted(stems)]


def _files(root: Path, kinds: Sequence[str] = ("train",)) -> dict[Path, re.Match[str]]:
    names = (f"{modality}_{kind}" for modality in _MODALITIES for kind in kinds)
    paths = (path for parent in folders(root, [".", *names]) for path in parent.iterdir())
    found = {path: match for path in paths if (match := _FILE.fullmatch(path.name))}
    return {path: match for path, match in found.items() if match[1].split("_")[1] in kinds}


def _volume_scans(stem: Path, names: tuple[str, ...]) -> list[Scan]:
    image = with_suffix(Path(f"{stem}_image"), NIFTI_SUFFIXES, "a volume has an image")
    mask = mask_of(Path(f"{stem}_label"), NIFTI_SUFFIXES)
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


LAYOUT = LayoutReader(_recognises, lambda root: CLASS_NAMES, _find)
LAYOUT_OF_FOUR = LayoutReader(
    recognises=lambda root: False,  # same files as LAYOUT: must be requested by name
    class_names=lambda root: FOUR_CLASS_NAMES,
    find=partial(_find, names=FOUR_CLASS_NAMES),
)
