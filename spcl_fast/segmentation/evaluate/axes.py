"""The axes of an image as those of the training images, and its labels back on its own.

A network has seen slices along one direction, with rows and columns in one order. Where the
training images all had the same axis codes (nibabel's, such as RAS) and an image says where it
lies, its axes are exchanged and reversed to those. The slices are then stacked along the axis with
the largest voxel size, if one is clearly the largest, else along the third.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spcl_fast.segmentation.data.arrays import FloatArray
from spcl_fast.segmentation.data.geometry import Geometry

THIRD = 2
_CLEARLY = 1.5  # largest voxel size over the second largest


@dataclass(frozen=True)
class Axes:
    """How an (x, y, z) array is turned before its slices are taken.

    Attributes:
        turn: nibabel's orientation transform to the axes of the training images.
        back: Its inverse.
        stack_axis: Axis of the turned array along which the slices are stacked.
        remark: What was changed, in words; None if nothing was.
    """

    turn: NDArray[Any]
    back: NDArray[Any]
    stack_axis: int = THIRD
    remark: str | None = None

    def turned(self, array: FloatArray) -> FloatArray:
        """Return an array with the axes of the training images."""
        turned: FloatArray = _orientations().apply_orientation(array, self.turn)
        return turned

    def spacing_mm(self, geometry: Geometry) -> tuple[float, ...]:
        """Return the voxel size along the axes of the turned array."""
        sizes = [0.0] * 3
        for axis, (target, _) in enumerate(self.turn):
            sizes[int(target)] = geometry.spacing_mm[axis]
        return tuple(sizes)

    def labels_back(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Return labels (S, H, W) as the (S, H, W) of the image as it is stored."""
        turned = np.moveaxis(labels.T, 2, self.stack_axis)
        back: NDArray[Any] = _orientations().apply_orientation(turned, self.back)
        return back.T


def common_codes(geometries: Iterable[Geometry]) -> str | None:
    """Return the axis codes that all images share, None if there is no such."""
    codes = {_codes(geometry) if geometry.is_placed else "" for geometry in geometries}
    return (codes.pop() or None) if len(codes) == 1 else None


def axes_of(geometry: Geometry, codes: str | None, stack_axis: int | None = None) -> Axes:
    """Return how an image is turned.

    Args:
        geometry: Of the image.
        codes: Axis codes of the training images, or None.
        stack_axis: Voxel axis of the file along which its slices are stacked; then nothing is
            turned. None: as the module says.
    """
    nib = _orientations()
    own = nib.io_orientation(geometry.affine)
    if stack_axis is not None:
        same = nib.ornt_transform(own, own)
        return Axes(same, same, stack_axis)
    other = nib.axcodes2ornt(codes) if codes and geometry.is_placed else own
    axes = Axes(nib.ornt_transform(own, other), nib.ornt_transform(other, own))
    sizes = axes.spacing_mm(geometry)
    *_, second, largest = sorted(sizes)
    axis = sizes.index(largest) if largest > _CLEARLY * second else THIRD
    remarks = []
    if not np.array_equal(own, other):
        remarks.append(f"axes {_codes(geometry)} turned to {codes}")
    if axis != THIRD:
        remarks.append(f"slices along axis {axis}, where voxels are largest")
    return Axes(axes.turn, axes.back, axis, "; ".join(remarks) or None)


def _codes(geometry: Geometry) -> str:
    return "".join(_orientations().aff2axcodes(geometry.affine))


def _orientations() -> Any:
    from nibabel import orientations

    return orientations
