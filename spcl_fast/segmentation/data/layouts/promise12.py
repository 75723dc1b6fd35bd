"""The layout of PROMISE12.

    <root>/training_data/Case00.mhd + .raw                   T2-weighted image
    <root>/training_data/Case00_segmentation.mhd + .raw      prostate, 0 or 1

The cases may also lie in the root itself, or in TrainingData_Part1 to TrainingData_Part3. Cases of
test_data have no labels and are left out. There is no cardiac phase. The data: Litjens et al.,
Medical Image Analysis 2014, doi 10.1016/j.media.2013.12.002.
"""

from __future__ import annotations

from pathlib import Path

from spcl_fast.segmentation.data.layouts.cases import Case, attempt, existing, folders, strict
from spcl_fast.segmentation.data.metaimage import SUFFIXES
from spcl_fast.segmentation.data.scan import Scan

NAME = "promise12"
CLASS_NAMES = ("background", "prostate")
_SUBFOLDERS = (".", "training_data", *(f"TrainingData_Part{part}" for part in (1, 2, 3)))
_MASK = "_segmentation"


def recognises(root: Path) -> bool:
    """Return whether some Case..._segmentation.mhd is here."""
    parents = folders(root, _SUBFOLDERS)
    return any(path.stem.endswith(_MASK) for parent in parents for path in _headers(parent))


def class_names(root: Path) -> tuple[str, ...]:
    """Return the names of the classes, the background first."""
    return CLASS_NAMES


def find_scans(root: Path | str) -> list[Scan]:
    """Find the labelled scans below a folder, sorted by name; file contents are not read.

    Raises:
        DataError: if a case lacks its image or its segmentation.
    """
    return strict(find_cases(Path(root)))


def find_cases(root: Path) -> list[Case]:
    """Find the scan of each case, or what is wrong with the case."""
    names = {
        parent / path.stem.removesuffix(_MASK)
        for parent in folders(root, _SUBFOLDERS)
        for path in _headers(parent)
    }
    return [attempt(_case_scans, stem) for stem in sorted(names)]


def _headers(folder: Path) -> list[Path]:
    return [path for path in folder.glob("Case*") if path.suffix in SUFFIXES]


def _case_scans(stem: Path) -> list[Scan]:
    image, mask = (
        existing(*(Path(f"{stem}{part}{end}") for end in SUFFIXES), because="a case is a pair")
        for part in ("", _MASK)
    )
    return [Scan(stem.name, stem.name, None, image, mask, class_names=CLASS_NAMES)]
