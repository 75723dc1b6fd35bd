"""One volume of a data set: its name, its files and how to read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

PHASES = ("ED", "ES")  # end-diastole, end-systole
SHORT_AXIS_CLASSES = ("background", "RV", "MYO", "LV")
OTHER_VALUES = -1  # key of `Scan.classes` for all label values that are not listed
IGNORED = 255  # in masks: not annotated, left out of losses and scores


@dataclass(frozen=True)
class Scan:
    """One volume and its files.

    Attributes:
        name: Unique name, such as ``patient001_frame01``.
        patient: Patient name, such as ``patient001``.
        phase: ``"ED"`` (end-diastole), ``"ES"`` (end-systole) or None where unknown.
        image: File of the image, of a format in `spcl_fast.segmentation.data.image_file`.
        mask: File of the labels; it may be the same HDF5 file. None: the scan has no labels.
        meta: Further meta-labels by name; an absent name means unknown.
        frame: Place of the volume along the fourth axis of a 4-D image, from 0, and of its mask if
            that is 4-D too; None for 3-D files.
        stack_axis: Voxel axis of the file, 0 to 2 for x to z, along which the slices are stacked.
        classes: Class of each label value in the file; a value that is not listed takes the class
            of the key ``OTHER_VALUES``, or is refused without that key. ``IGNORED`` marks what is
            not annotated. None: a value is its class.
        class_names: Names of the classes 0, 1, ..., the background first.
        channels: How an image with channels keeps them: ``"axis"``, along its fourth axis, where
            `frame` is the place of the one that is read; ``"files"``, in one file each.
        slice_meta: Meta-labels of single slices, by name and place in the stack from 0.
    """

    name: str
    patient: str
    phase: str | None
    image: Path
    mask: Path | None
    meta: Mapping[str, str] = field(default_factory=dict)
    frame: int | None = None
    stack_axis: int = 2
    classes: Mapping[int, int] | None = None
    class_names: tuple[str, ...] = SHORT_AXIS_CLASSES
    channels: Literal["axis", "files"] | None = None
    slice_meta: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
