"""The layout of PROMISE12.

    <root>/training_data/Case00.mhd + .raw                   T2-weighted image
    <root>/training_data/Case00_segmentation.mhd + .raw      prostate, 0 or 1

The cases may also lie in the root itself, or in TrainingData_Part1 to TrainingData_Part3. A case
may have no labels; those of test_data have none and are taken on request. There is no cardiac
phase. The data: Litjens et al., Medical Image Analysis 2014, doi 10.1016/j.media.2013.12.002.
"""

from __future__ import annotations

from pathlib import Path

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
from spcl_fast.segmentation.data.metaimage import SUFFIXES
from spcl_fast.segmentation.data.scan import Scan

CLASS_NAMES = ("background", "prostate")
_SUBFOLDERS = (".", "training_data", *(f"TrainingData_Part{part}" for part in (1, 2, 3)))
_MASK = "_segmentation"


def _recognises(root: Path) -> bool:
    """Return whether some Case..._segmentation.mhd is here."""
    parents = folders(root, _SUBFOLDERS)
    return any(path.stem.endswith(_MASK) for parent in parents for path in _headers(parent))


def _find(root: Path, choice: Choice = FIRST_CHANNEL) -> list[ScansOrError]:
    more = ("test_data", "TestData") if choice.unlabelled_folders else ()
    stems = {
        parent / path.stem.removesuffix(_MASK)
        for parent in folders(root, (*_SUBFOLDERS, *more))
        for path in _headers(parent)
    }
    return [attempt(_case_scans, stem) for stem in sorted(stems)]


def _headers(folder: Path) -> list[Path]:
    return [path for path in folder.glob("Case*") if path.suffix in SUFFIXES]


def _case_scans(stem: Path) -> list[Scan]:
    image = with_suffix(stem, SUFFIXES, "a case has an image")
    mask = mask_of(Path(f"{stem}{_MASK}"), SUFFIXES)
    return [Scan(stem.name, stem.name, None, image, mask, class_names=CLASS_NAMES)]


LAYOUT = LayoutReader(_recognises, lambda root: CLASS_NAMES, _find)
