"""The interface of a layout, and helpers that several layouts share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.scan import PHASES, Scan

ScansOrError: TypeAlias = list[Scan] | DataError  # of one patient or volume


@dataclass(frozen=True)
class Choice:
    """What is read of a data set that holds more.

    Attributes:
        channel: Channel of images that have several, from 0.
        unlabelled_folders: Take the images of folders that have no labels too.
    """

    channel: int = 0
    unlabelled_folders: bool = False


FIRST_CHANNEL = Choice()


@dataclass(frozen=True)
class LayoutReader:
    """How the files of a data set become scans.

    Attributes:
        recognises: Returns whether a folder has this layout.
        class_names: Returns the names of the classes of a folder, the background first.
        find: Returns, for each patient or volume below a folder, its scans or what is wrong with
            it; images are not read. Its second argument, a `Choice`, may be left out.
    """

    recognises: Callable[[Path], bool]
    class_names: Callable[[Path], tuple[str, ...]]
    find: Callable[..., list[ScansOrError]]


def attempt(read: Callable[..., list[Scan]], *arguments: Any) -> ScansOrError:
    """Return the scans that ``read(*arguments)`` finds, or the DataError it raises."""
    try:
        return read(*arguments)
    except DataError as error:
        return error


def folders(root: Path, names: Sequence[str]) -> list[Path]:
    """Return the folders of these names below root that exist; ``"."`` is root itself."""
    return [root / name for name in names if (root / name).is_dir()]


def existing(*paths: Path, because: str) -> Path:
    """Return the first of some files that exists.

    Raises:
        DataError: None exists; the message names the first.
    """
    for path in paths:
        if path.is_file():
            return path
    raise DataError(f"{paths[0]} must exist ({because}), got no such file.")


def with_suffix(stem: Path, suffixes: Sequence[str], because: str) -> Path:
    """Return the only file of a stem, which may contain dots, and a suffix.

    Raises:
        DataError: None exists, or several do; the message names them.
    """
    paths = [Path(f"{stem}{suffix}") for suffix in suffixes]
    found = [path.name for path in paths if path.is_file()]
    if len(found) > 1:
        raise DataError(
            f"{stem.parent} must hold one file of {stem.name}, got {' and '.join(found)}."
        )
    return existing(*paths, because=because)


def mask_of(stem: Path, suffixes: Sequence[str]) -> Path | None:
    """Return the only file of a stem and a suffix, or None if the scan has no labels.

    Raises:
        DataError: There are several.
    """
    if not any(Path(f"{stem}{suffix}").is_file() for suffix in suffixes):
        return None
    return with_suffix(stem, suffixes, because="")


def frame_name(patient: str, frame: int) -> str:
    """Return the name of one frame of a patient in the style of ACDC."""
    return f"{patient}_frame{frame:02d}"


def phase_frames(texts: Mapping[str, str], patient: str, path: Path) -> dict[str, int]:
    """Parse the frame numbers of a patient's phases.

    Args:
        texts: The file's text for each phase.
        patient: Name of the patient.
        path: The file.

    Raises:
        DataError: A text is not a number, or ED and ES are the same frame.
    """
    frames = {}
    for phase in PHASES:
        text = texts[phase].strip()
        if not text.isdecimal():
            raise DataError(f"{path} must give {phase} of {patient} as a number, got '{text}'.")
        frames[phase] = int(text)
    if frames["ED"] == frames["ES"]:
        number = frames["ED"]
        raise DataError(
            f"{path} must give different frames for ED and ES of {patient}, got {number} twice."
        )
    return frames
