"""The images that prediction is given, as cases: a name, a file and which of its volumes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.image_file import SUFFIXES, num_volumes, suffix_of

_CHANNEL_FILE = re.compile(r"(.+)_(\d{4})")  # nnU-Net: <case>_0000, <case>_0001
Frame: TypeAlias = int | Literal["all"]


@dataclass(frozen=True)
class VolumeChoice:
    """Which volumes of the images are segmented.

    Attributes:
        channel: The channel of images that have several, from 0; None if they have none.
        in_files: A file is one channel of a case, as in nnU-Net.
        on_axis: The fourth axis of an image is its channels, as in the Decathlon.
        frame: The frame of images over time, or every one; None refuses such images.
        is_asked: Names are known not to end in a channel.
    """

    channel: int | None = None
    in_files: bool = False
    on_axis: bool = False
    frame: Frame | None = None
    is_asked: bool = False


@dataclass(frozen=True)
class InputVolume:
    """One volume.

    Attributes:
        path: The file.
        frame: Place along the fourth axis, or None.
        error: Why there is no such volume.
    """

    path: Path
    frame: int | None = None
    error: str | None = None


def find_images(path: Path) -> Sequence[Path]:
    """Return `path`, or the images in the folder `path`, sorted; hidden files are left out.

    Raises:
        DataError: There is none.
    """
    if path.is_file():
        return [path]
    files = sorted(path.iterdir()) if path.is_dir() else []
    found = [p for p in files if suffix_of(p) and not p.name.startswith(".")]
    if not found:
        kinds = ", ".join(SUFFIXES)
        if path.is_dir():
            holds = "only other files and folders" if files else "an empty folder"
            raise DataError(f"images must be a folder with {kinds} files, got {holds}: {path}")
        raise DataError(f"images must be a NIfTI file, another of {kinds}, or a folder, got {path}")
    return found


def cases_of(images: Path, out: Path, choice: VolumeChoice) -> dict[str, InputVolume]:
    """Return the volumes to segment by the name that their output begins with.

    Args:
        images: An image, or a folder of them.
        out: Folder for NAME_pred.nii.gz.
        choice: Which volumes.

    Raises:
        DataError: There is no image, names do not tell cases apart, or an output would take the
            place of another file.
    """
    files: dict[str, list[Path]] = {}
    for path in find_images(images):
        files.setdefault(_case_name(path, choice), []).append(path)
    if images.is_dir() and out.resolve() == images.resolve():
        raise DataError(f"out must be another folder than images, got {out}")
    if choice.channel is None and not choice.is_asked:
        _refuse_channels(files)
    cases: dict[str, InputVolume] = {}
    for name, group in files.items():
        for case, volume in _volumes(name, _of_channel(name, group, choice), choice).items():
            other = cases.setdefault(case, volume)
            if other is not volume:
                raise _same_name(case, [other.path, volume.path])
    return cases


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(suffix_of(path))]


def _case_name(path: Path, choice: VolumeChoice) -> str:
    match = _CHANNEL_FILE.fullmatch(_stem(path)) if choice.in_files else None
    return match[1] if match else _stem(path)


def _same_name(case: str, paths: Sequence[Path]) -> DataError:
    names = " and ".join(path.name for path in paths)
    return DataError(f"images must have different names, got {names} for {case}_pred.nii.gz")


def _of_channel(name: str, files: Sequence[Path], choice: VolumeChoice) -> InputVolume:
    """Return the file of one case that is read."""
    wanted = f"{name}_{choice.channel or 0:04d}"
    found = [path for path in files if _stem(path) in (name, wanted)]
    if len(found) > 1:
        raise _same_name(name, found)
    if found:
        return InputVolume(found[0])
    others = ", ".join(path.name for path in files)
    lacking = f"channel {choice.channel} of {name}, a file {wanted}"
    return InputVolume(files[0], error=f"{files[0].parent} must hold {lacking}, got {others}.")


def _refuse_channels(files: Iterable[str]) -> None:
    """Refuse names that may be the channels of one case or cases of their own."""
    numbers: dict[str, list[str]] = {}
    for name in files:
        if match := _CHANNEL_FILE.fullmatch(name):
            numbers.setdefault(match[1], []).append(match[2])
    for case, found in numbers.items():
        if len(found) > 1 and "0000" in found:
            raise DataError(
                f"channel must be given where names end like {case}_0000 and {case}_{found[1]}: "
                "--channel 0 if each is one channel of a case, --channel none if each is a case."
            )


def _volumes(name: str, case: InputVolume, choice: VolumeChoice) -> dict[str, InputVolume]:
    """Return the volumes of one file by their names."""
    if case.error:
        return {name: case}
    try:
        count = num_volumes(case.path)
    except DataError as error:
        return {name: replace(case, error=str(error))}
    is_channel = choice.in_files and _stem(case.path) != name
    if choice.on_axis and choice.channel is not None and not is_channel:
        frame = choice.channel if count > 1 or choice.channel else None
        return {name: replace(case, frame=frame)}
    if count == 1:
        return {name: case}
    if choice.frame == "all":
        frames = {f"{name}_frame{frame:02d}": frame for frame in range(count)}
        return {one: replace(case, frame=frame) for one, frame in frames.items()}
    if choice.frame is None:
        problem = (
            f"{case.path} must hold a 3-D volume, got {count} volumes: choose with --frame or, if "
            "they are channels, --channel."
        )
        return {name: replace(case, error=problem)}
    return {name: replace(case, frame=choice.frame)}
