"""The layouts of the Medical Segmentation Decathlon and of nnU-Net.

    <root>/dataset.json          labels; in the Decathlon also the pairs under "training"
    <root>/imagesTr/<case>.nii.gz          Decathlon; several channels make it 4-D
    <root>/imagesTr/<case>_0000.nii.gz     nnU-Net, one file per channel
    <root>/labelsTr/<case>.nii.gz

The Decathlon writes labels as ``{"1": "name"}``, nnU-Net v2 as ``{"name": 1}``; both are read. The
label called ignore, if there is one, marks voxels that nobody annotated. One channel is the image,
the first unless another is chosen. A case without labels is listed without a label, or on disk has
no file in labelsTr; those of imagesTs have none and are taken on request. The ``._`` files that
some archives carry are left out. A case called ``<patient>_frame<number>``, as nnU-Net's
copy of ACDC has them, belongs to that patient; any other case is a patient. There is no cardiac
phase.

The data: Antonelli et al., Nature Communications 2022, doi 10.1038/s41467-022-30695-9.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.layouts.layout import (
    FIRST_CHANNEL,
    Choice,
    LayoutReader,
    ScansOrError,
    attempt,
    existing,
)
from spcl_fast.segmentation.data.metadata_csv import read_text
from spcl_fast.segmentation.data.scan import IGNORED, Scan

_Pair: TypeAlias = tuple[Path, Path | None]  # image and labels
_CHANNEL = re.compile(r"(.+)_\d{4}")
_FRAME = re.compile(r"_frame\d+$")
_IGNORE = "ignore"  # nnU-Net's name of what is not annotated


@dataclass(frozen=True)
class _Reading:
    """What dataset.json says of every case, and the chosen channel."""

    end: str
    num_channels: int
    channel: int
    names: tuple[str, ...]
    classes: dict[int, int] | None

    def file_of(self, image: Path) -> Path:
        """Return the file of the channel of an image without it in its name, as nnU-Net has it."""
        return image.with_name(f"{image.name.removesuffix(self.end)}{self._tail}")

    def images(self, folder: Path) -> list[Path]:
        """Return the image of each case of a folder, if its channels are in files that of one."""
        paths = [path for path in sorted(folder.glob(f"*{self.end}")) if path.name[0] != "."]
        found = (_CHANNEL.fullmatch(path.name.removesuffix(self.end)) for path in paths)
        cases = sorted({match[1] for match in found if match})
        return [folder / f"{case}{self._tail}" for case in cases] or paths

    def case_of(self, image: Path) -> str:
        """Return the name of the case that an image belongs to."""
        name = image.name
        return name.removesuffix(self._tail if name.endswith(self._tail) else self.end)

    @property
    def _tail(self) -> str:
        return f"_{self.channel:04d}{self.end}"


def _recognises(root: Path) -> bool:
    """Return whether a dataset.json is here."""
    return (root / "dataset.json").is_file()


def _names(root: Path) -> tuple[str, ...]:
    return _labels(root / "dataset.json", _read_json(root / "dataset.json"))[0]


def _find(root: Path, choice: Choice = FIRST_CHANNEL) -> list[ScansOrError]:
    path = root / "dataset.json"
    description = _read_json(path)
    names, classes = _labels(path, description)
    channels = description.get("channel_names", description.get("modality", {}))
    end = description.get("file_ending", ".nii.gz")
    if not isinstance(channels, dict) or not isinstance(end, str):
        raise DataError(f"{path} must map channel numbers to names, got {channels!r}.")
    if not 0 <= choice.channel < max(1, len(channels)):
        raise DataError(
            f"channel must be one of {path}, 0 to {max(1, len(channels)) - 1}, "
            f"got {choice.channel}."
        )
    reading = _Reading(end, len(channels), choice.channel, names, classes)
    pairs = _listed_pairs(path, description) or _pairs_on_disk(root, reading)
    if choice.unlabelled_folders:
        pairs += [(image, None) for image in reading.images(root / "imagesTs")]
    return [attempt(_case_scans, *pair, reading) for pair in pairs]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} must be a readable JSON file, got {error}.") from error
    if not isinstance(description, dict):
        raise DataError(f"{path} must hold a JSON object, got {type(description).__name__}.")
    return description


def _labels(
    path: Path, description: dict[str, Any]
) -> tuple[tuple[str, ...], dict[int, int] | None]:
    """Return the names of the classes, and the class of each value if some are not annotated."""
    labels = description.get("labels")
    pairs = list(labels.items()) if isinstance(labels, dict) else []
    if pairs and all(str(key).isdecimal() for key, _ in pairs):
        pairs = [(name, key) for key, name in pairs]
    try:
        values = {str(name): int(number) for name, number in pairs}
    except (TypeError, ValueError):  # nnU-Net's regions are lists of numbers
        values = {}
    known = {value: name for name, value in values.items() if name.lower() != _IGNORE}
    ignored = [value for name, value in values.items() if name.lower() == _IGNORE]
    is_numbered = bool(known) and sorted(known) == list(range(len(known)))
    if not is_numbered or len(known) + len(ignored) != len(pairs) or set(ignored) & set(known):
        raise DataError(
            f"{path} must have labels numbered 0, 1, ... with different names, got {labels!r}."
        )
    names = tuple(known[number] for number in range(len(known)))
    classes = {value: value for value in known} | dict.fromkeys(ignored, IGNORED)
    return names, classes if ignored else None


def _listed_pairs(path: Path, description: dict[str, Any]) -> list[_Pair]:
    """Return image and labels of each entry of "training"."""
    pairs = []
    try:
        for entry in description.get("training", []):
            image, mask = Path(entry["image"]), entry.get("label")
            pairs.append((image, Path(mask) if mask else None))
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} must list each training case with its image.") from error
    root = path.parent
    return [(root / i, root / m if m else None) for i, m in pairs if i.name[:1] != "."]


def _pairs_on_disk(root: Path, reading: _Reading) -> list[_Pair]:
    """Return image and labels of each case of nnU-Net, by name."""
    end, images, labels = reading.end, root / "imagesTr", root / "labelsTr"
    masks = {path.name: path for path in labels.glob(f"*{end}") if path.name[0] != "."}
    pairs: dict[str, _Pair] = {
        name: (reading.file_of(images / name), mask) for name, mask in masks.items()
    }
    for image in reading.images(images):
        pairs.setdefault(f"{reading.case_of(image)}{end}", (image, None))
    return [pairs[name] for name in sorted(pairs)]


def _case_scans(image: Path, mask: Path | None, reading: _Reading) -> list[Scan]:
    image = existing(image, reading.file_of(image), because="the data set has this case")
    if mask is not None:
        mask = existing(mask, because="the data set has this case")
    case = reading.case_of(image) if mask is None else mask.name.removesuffix(reading.end)
    channels: Literal["axis", "files"] | None = None
    if image.name == reading.file_of(image.with_name(f"{case}{reading.end}")).name:
        channels = "files"
    elif reading.num_channels > 1:
        channels = "axis"
    return [
        Scan(
            name=case,
            patient=_FRAME.sub("", case),
            phase=None,
            image=image,
            mask=mask,
            frame=reading.channel if channels == "axis" else None,
            classes=reading.classes,
            class_names=reading.names,
            channels=channels,
        )
    ]


LAYOUT = LayoutReader(_recognises, _names, _find)
