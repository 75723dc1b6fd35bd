"""Read the images and labels of scans as arrays, and write labels back.

Orientation: the array of a file is indexed (x, y, z). We hold (slice, row, column): the stack axis
of the scan first, then the other two in reverse, exactly as stored. Images are not
reoriented to a patient frame, because cardiac files often have a diagonal affine that is unrelated
to the anatomy. Masks are brought to the axes of their image, see `geometry`. The affine is kept and
written back, so labels written by `write_labels` match the image they were predicted from voxel by
voxel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spcl_fast.atomic_file import atomic_file
from spcl_fast.segmentation.data import image_file
from spcl_fast.segmentation.data.arrays import AffineArray, FloatArray, LabelArray, Spacing
from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.geometry import Geometry, to_axes_of
from spcl_fast.segmentation.data.scan import IGNORED, OTHER_VALUES, Scan

_LABEL_ROUNDING = 1e-3  # of labels that were resampled or scaled


@dataclass(frozen=True)
class Volume:
    """The content of a `Scan`.

    Attributes:
        image: (S, H, W) float32, the S slices in file order.
        mask: (S, H, W) uint8 classes, ``IGNORED`` where nothing is annotated.
        spacing_mm: (dz, dy, dx) in millimetres of the image.
        affine: (4, 4) float64 of the image, voxel (x, y, z) to millimetres.
        geometry: Of the image.
    """

    image: FloatArray
    mask: LabelArray
    spacing_mm: Spacing
    affine: AffineArray
    geometry: Geometry


def read_image(
    path: Path | str, *, frame: int | None = None, stack_axis: int = 2, dataset: str = "image"
) -> tuple[FloatArray, Spacing, AffineArray]:
    """Read a volume.

    Args:
        path: A file of a format in `spcl_fast.segmentation.data.image_file`.
        frame: As in `Scan`.
        stack_axis: As in `Scan`.
        dataset: Name of the array in an HDF5 file.

    Returns:
        image (S, H, W) float32, spacing (dz, dy, dx) in millimetres, affine (4, 4) float64.

    Raises:
        DataError: The file is missing, unreadable, truncated, not 3-D (4-D with a frame), not
            real-valued, has an invalid geometry, or holds NaN or infinite values.
    """
    array, geometry = image_file.load(Path(path), frame, dataset)
    image, spacing_mm = stacked(array, geometry, stack_axis)
    return image, spacing_mm, geometry.affine


def stacked(
    array: FloatArray, geometry: Geometry, stack_axis: int = 2
) -> tuple[FloatArray, Spacing]:
    """Return an (x, y, z) volume as slices (S, H, W), and its spacing (dz, dy, dx).

    Raises:
        DataError: It holds NaN or infinite values.
    """
    return _stack(array, geometry, stack_axis), _spacing(geometry, stack_axis)


def read_labels(
    path: Path | str,
    num_classes: int,
    *,
    frame: int | None = None,
    stack_axis: int = 2,
    classes: Mapping[int, int] | None = None,
    image: Geometry | None = None,
) -> LabelArray:
    """Read the labels of a volume as classes.

    Args:
        path: A file as in `read_image`; the array of an HDF5 file is ``label``.
        num_classes: Classes must be in 0 .. num_classes - 1.
        frame: As in `Scan`; ignored where the file is 3-D.
        stack_axis: As in `Scan`.
        classes: As in `Scan`.
        image: Of the image that the labels belong to: they are brought to its axes.

    Returns:
        (S, H, W) uint8, ``IGNORED`` where `classes` says so.

    Raises:
        DataError: As `read_image`, a value is not a class, or the labels lie elsewhere than the
            image.
    """
    path = Path(path)
    array, geometry = image_file.load(path, frame, "label", may_lack_frames=True)
    if image is not None:
        array = to_axes_of(image, array, geometry)
    values = _stack(array, geometry, stack_axis)
    labels = np.zeros(values.shape, np.uint8)
    bad: set[float] = set()
    for plane, out in zip(values, labels, strict=True):  # a slice at a time spares memory
        for value in np.unique(plane).tolist():
            found = _class_of(value, classes)
            is_ignored = found == IGNORED and classes is not None
            if found is not None and (0 <= found < num_classes or is_ignored):
                out[plane == value] = found
            else:
                bad.add(value)
    if bad:
        shown = ", ".join(map(_shown, sorted(bad)[:5])) + (", ..." if len(bad) > 5 else "")
        known = sorted(value for value in classes or {} if value != OTHER_VALUES)
        wanted = f"in {', '.join(map(str, known))}" if known else f"in 0..{num_classes - 1}"
        raise DataError(f"{path} must hold labels {wanted}, got {shown}.")
    return labels


def _class_of(value: float, classes: Mapping[int, int] | None) -> int | None:
    whole = round(value)
    if abs(value - whole) > _LABEL_ROUNDING or whole < 0:
        return None
    if classes is None:
        return whole
    return classes.get(whole, classes.get(OTHER_VALUES))


def _shown(value: float) -> str:
    """Return a float32 value with as many digits as tell it from its neighbours."""
    short = f"{value:g}"
    return short if float(short) == value else str(np.float32(value))


def _stack(array: FloatArray, geometry: Geometry, stack_axis: int) -> FloatArray:
    """Check the values of an (x, y, z) volume and transpose it to (slice, row, column)."""
    num_bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if num_bad:
        raise DataError(
            f"{geometry.path} must hold finite values, got {num_bad} NaN or infinite voxels."
        )
    order = _order(stack_axis)
    return np.require(array.transpose(order), requirements=("C_CONTIGUOUS", "WRITEABLE"))


def _order(stack_axis: int) -> tuple[int, int, int]:
    """Return the voxel axes of slice, row and column."""
    column, row = (axis for axis in range(3) if axis != stack_axis)
    return stack_axis, row, column


def _spacing(geometry: Geometry, stack_axis: int) -> Spacing:
    slice_, row, column = _order(stack_axis)
    sizes = geometry.spacing_mm
    return sizes[slice_], sizes[row], sizes[column]


def read_scan(scan: Scan) -> Volume:
    """Read the image and the labels of a scan.

    Returns:
        The volume; spacing and affine are those of the image, and the labels have its axes. Those
        of a scan without a mask are ``IGNORED`` everywhere.

    Raises:
        DataError: As `read_image` and `read_labels`.
    """
    array, geometry = image_file.load(scan.image, scan.frame)
    image = _stack(array, geometry, scan.stack_axis)
    spacing_mm = _spacing(geometry, scan.stack_axis)
    if scan.mask is None:
        labels = np.full(image.shape, IGNORED, np.uint8)
        return Volume(image, labels, spacing_mm, geometry.affine, geometry)
    labels = read_labels(
        scan.mask,
        len(scan.class_names),
        frame=scan.frame,
        stack_axis=scan.stack_axis,
        classes=scan.classes,
        image=geometry,
    )
    return Volume(image, labels, spacing_mm, geometry.affine, geometry)


def write_labels(
    path: Path | str, labels: LabelArray, affine: AffineArray, *, stack_axis: int = 2
) -> None:
    """Write labels as NIfTI, whole or not at all.

    Args:
        path: ``.nii`` or ``.nii.gz`` file to write; its folder is created if missing.
        labels: (S, H, W) uint8, on the grid of the image.
        affine: (4, 4) of the image; the voxel size in the header is taken from it.
        stack_axis: As in `Scan`: the voxel axis of the image that S runs along.

    Raises:
        ValueError: `labels` is not 3-D uint8, or `path` does not end in .nii or .nii.gz.
    """
    import nibabel

    path = Path(path)
    if not path.name.endswith(image_file.NIFTI_SUFFIXES):
        raise ValueError(f"path must end in .nii or .nii.gz, got {path}")
    if labels.ndim != 3 or labels.dtype != np.uint8:
        raise ValueError(f"labels must be 3-D uint8, got {labels.dtype} of shape {labels.shape}")
    array = np.moveaxis(labels.T, 2, stack_axis)  # (x, y, z)
    nifti: Any = nibabel.Nifti1Image(array, affine)  # type: ignore[no-untyped-call]
    nifti.header.set_xyzt_units("mm")
    with atomic_file(path) as partial:
        nibabel.save(nifti, partial)
