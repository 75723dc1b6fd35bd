"""One labelled volume of a data set: what it is called and how its files are to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PHASES = ("ED", "ES")  # end-diastole, end-systole
SHORT_AXIS_CLASSES = ("background", "RV", "MYO", "LV")
OTHER_VALUES = -1  # key of `Scan.classes` that stands for every value of a file not listed


@dataclass(frozen=True)
class Scan:
    """One labelled volume, by its files.

    Attributes:
        name: unique name, such as ``patient001_frame01``.
        patient: patient name, such as ``patient001``.
        phase: ``"ED"`` (end-diastole), ``"ES"`` (end-systole) or None where unknown.
        image: file of the image, of a format in `spcl_fast.segmentation.data.image_file`.
        mask: file of the labels; it may be the same HDF5 file.
        meta: further meta-labels by name; a name that is absent is unknown.
        frame: place of the volume along the fourth axis of a 4-D image, from 0, and of its mask if
            that is 4-D too; None for 3-D files.
        stack_axis: voxel axis of the file, 0 to 2 for x to z, along which the slices are stacked.
        classes: class of each label value in the file; a value that is not listed takes the class
            of the key ``OTHER_VALUES``, or is refused without that key. None: a value is its class.
        class_names: names of the classes 0, 1, ..., the background first.
    """

    name: str
    patient: str
    phase: str | None
    image: Path
    mask: Path
    meta: Mapping[str, str] = field(default_factory=dict)
    frame: int | None = None
    stack_axis: int = 2
    classes: Mapping[int, int] | None = None
    class_names: tuple[str, ...] = SHORT_AXIS_CLASSES
