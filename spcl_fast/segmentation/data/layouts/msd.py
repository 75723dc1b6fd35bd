"""The layouts of the Medical Segmentation Decathlon and of nnU-Net.

    <root>/dataset.json          labels; in the Decathlon also the pairs under "training"
    <root>/imagesTr/<case>.nii.gz          Decathlon; several channels make it 4-D
    <root>/imagesTr/<case>_0000.nii.gz     nnU-Net, one file per channel
    <root>/labelsTr/<case>.nii.gz

The Decathlon writes labels as ``{"1": "name"}``, nnU-Net v2 as ``{"name": 1}``; both are read. The
first channel is the image. Cases of imagesTs have no labels and are left out, and so are the
``._`` files that some archives carry. A case called ``<patient>_frame<number>``, as nnU-Net's copy
of ACDC has them, belongs to that patient; any other case is a patient. There is no cardiac phase.

The data: Antonelli et al., Nature Communications 2022, doi 10.1038/s41467-022-30695-9.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.layouts.layout import LayoutReader, ScansOrError, attempt, existing
from spcl_fast.segmentation.data.metadata_csv import read_text
from spcl_fast.segmentation.data.scan import Scan

_FRAME = re.compile(r"_frame\d+$")


def _recognises(root: Path) -> bool:
    """Return whether a dataset.json is here."""
    return (root / "dataset.json").is_file()


def _names(root: Path) -> tuple[str, ...]:
    return _class_names(root / "dataset.json", _read_json(root / "dataset.json"))


def _find(root: Path) -> list[ScansOrError]:
    path = root / "dataset.json"
    description = _read_json(path)
    names = _class_names(path, description)
    channels = description.get("channel_names", description.get("modality", {}))
    end = description.get("file_ending", ".nii.gz")
    if not isinstance(channels, dict) or not isinstance(end, str):
        raise DataError(f"{path} must map channel numbers to names, got {channels!r}.")
    pairs = _listed_pairs(path, description) or _pairs_on_disk(root, end)
    return [attempt(_case_scans, *pair, end, len(channels), names) for pair in pairs]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} must be a readable JSON file, got {error}.") from error
    if not isinstance(description, dict):
        raise DataError(f"{path} must hold a JSON object, got {type(description).__name__}.")
    return description


def _class_names(path: Path, description: dict[str, Any]) -> tuple[str, ...]:
    labels = description.get("labels")
    pairs = list(labels.items()) if isinstance(labels, dict) else []
    if pairs and all(str(key).isdecimal() for key, _ in pairs):
        pairs = [(name, key) for key, name in pairs]
    try:
        by_number = {int(number): str(name) for name, number in pairs}
    except (TypeError, ValueError):  # nnU-Net's regions are lists of numbers
        by_number = {}
    if not by_number or sorted(by_number) != list(range(len(pairs))):
        raise DataError(f"{path} must have labels numbered 0, 1, ..., got {labels!r}.")
    return tuple(by_number[number] for number in range(len(pairs)))


def _listed_pairs(path: Path, description: dict[str, Any]) -> list[tuple[Path, Path]]:
    """Return image and labels of each entry of "training"."""
    try:
        pairs = [(Path(e["image"]), Path(e["label"])) for e in description.get("training", [])]
    except (TypeError, KeyError) as error:
        raise DataError(f"{path} must list each training case with image and label.") from error
    root = path.parent
    return [(root / image, root / mask) for image, mask in pairs if image.name[:1] != "."]


def _pairs_on_disk(root: Path, end: str) -> list[tuple[Path, Path]]:
    masks = sorted(path for path in (root / "labelsTr").glob(f"*{end}") if path.name[0] != ".")
    return [(_first_channel(root / "imagesTr" / mask.name, end), mask) for mask in masks]


def _first_channel(image: Path, end: str) -> Path:
    return image.with_name(f"{image.name.removesuffix(end)}_0000{end}")


def _case_scans(
    image: Path, mask: Path, end: str, num_channels: int, names: tuple[str, ...]
) -> list[Scan]:
    case = mask.name.removesuffix(end)
    image = existing(image, _first_channel(image, end), because="the data set has this case")
    mask = existing(mask, because="the data set has this case")
    has_channels = num_channels > 1 and not image.name.endswith(f"_0000{end}")
    frame = 0 if has_channels else None
    return [Scan(case, _FRAME.sub("", case), None, image, mask, {}, frame, class_names=names)]


LAYOUT = LayoutReader(_recognises, _names, _find)
