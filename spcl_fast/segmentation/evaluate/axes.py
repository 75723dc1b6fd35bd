"""The axes of an image as those of the training images, and its labels back on its own.

A network has seen slices along one direction, with rows and columns in one order. Where the
training images all had the same axis codes (nibabel's, such as RAS) and an image says where it
lies, its axes are exchanged and reversed to those. The slices are then stacked along the axis with
the largest voxel size, if one is clearly the largest, else along the third; along the third, too,
if the training images had larger voxels along another. Prediction and evaluation on another data
set follow this rule; training and its own evaluation read images as they are stored, to which it
leads for them as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

    @property
    def stored_stack_axis(self) -> int:
        """Axis of the array as it is stored along which the slices are stacked."""
        targets = [int(target) for target, _ in self.turn]
        return targets.index(self.stack_axis)

    def labels_back(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Return labels (S, H, W) as the (S, H, W) of the image as it is stored."""
        turned = np.moveaxis(labels.T, 2, self.stack_axis)
        back: NDArray[Any] = _orientations().apply_orientation(turned, self.back)
        return back.T


@dataclass(frozen=True)
class Turning:
    """How the axes of images become those of the training images.

    Attributes:
        codes: Axis codes of the training images, or None.
        stack_axis: As in `axes_of`.
        is_by_size: As in `axes_of`.
    """

    codes: str | None = None
    stack_axis: int | None = None
    is_by_size: bool = True

    def of(self, geometry: Geometry) -> Axes:
        """Return how an image is turned."""
        return axes_of(geometry, self.codes, self.stack_axis, is_by_size=self.is_by_size)


def turning_to(geometries: Sequence[Geometry]) -> Turning:
    """Return how other images get the axes of some, which it leaves as they are stored."""
    is_by_size = all(_largest_axis(geometry.spacing_mm) == THIRD for geometry in geometries)
    return Turning(common_codes(geometries), is_by_size=is_by_size)


def common_codes(geometries: Iterable[Geometry]) -> str | None:
    """Return the axis codes that all images share, None if they differ."""
    codes = {_codes(geometry) if geometry.is_placed else "" for geometry in geometries}
    return (codes.pop() or None) if len(codes) == 1 else None


def axes_of(
    geometry: Geometry,
    codes: str | None,
    stack_axis: int | None = None,
    *,
    is_by_size: bool = True,
) -> Axes:
    """Return how an image is turned.

    Args:
        geometry: Of the image.
        codes: Axis codes of the training images, or None.
        stack_axis: Voxel axis of the file along which its slices are stacked; then nothing is
            turned. None: as the module says.
        is_by_size: The slices of the training images were stacked along their largest voxels.
    """
    nib = _orientations()
    own = nib.io_orientation(geometry.affine)
    if stack_axis is not None:
        same = nib.ornt_transform(own, own)
        return Axes(same, same, stack_axis)
    other = nib.axcodes2ornt(codes) if codes and geometry.is_placed else own
    axes = Axes(nib.ornt_transform(own, other), nib.ornt_transform(other, own))
    axis = _largest_axis(axes.spacing_mm(geometry)) if is_by_size else THIRD
    remarks = []
    if not np.array_equal(own, other):
        remarks.append(f"axes {_codes(geometry)} turned to {codes}")
    if axis != THIRD:
        remarks.append(f"slices along axis {axis}, where voxels are largest")
    return Axes(axes.turn, axes.back, axis, "; ".join(remarks) or None)


def _largest_axis(sizes: Sequence[float]) -> int:
    """Return the axis of the voxel size that is clearly the largest, else the third."""
    *_, second, largest = sorted(sizes)
    return sizes.index(largest) if largest > _CLEARLY * second else THIRD


def _codes(geometry: Geometry) -> str:
    return "".join(_orientations().aff2axcodes(geometry.affine))


def _orientations() -> Any:
    from nibabel import orientations

    return orientations
