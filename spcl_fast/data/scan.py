"""One labelled volume of one cardiac phase: reading and writing NIfTI files.

Orientation: a NIfTI array is indexed (x, y, z). We hold its transpose, (z, y, x) = (slice, row,
column), exactly as stored: nothing is flipped or reoriented to a patient frame, because cardiac
files often carry a diagonal affine that says nothing about the anatomy. The affine is kept and
written back, so labels written by `write_labels` overlay the image they were predicted from, voxel
for voxel.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Spacing = tuple[float, float, float]  # (dz, dy, dx) in millimetres
FloatArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.uint8]
AffineArray = npt.NDArray[np.float64]

SUFFIXES = (".nii", ".nii.gz")
_CONTENT_ERRORS = (
    *(OSError, EOFError, zlib.error),  # missing bytes, broken compression
    *(ValueError, TypeError, KeyError, OverflowError, MemoryError),  # headers that make no sense
)


class DataError(ValueError):
    """A problem with the user's files; the message is one sentence that names the file."""


@dataclass(frozen=True)
class Scan:
    """One labelled volume of one cardiac phase, by its files.

    Attributes:
        name: unique name, such as ``patient001_frame01``.
        patient: patient name, such as ``patient001``.
        phase: ``"ED"`` (end-diastole) or ``"ES"`` (end-systole).
        image: NIfTI file of the image.
        mask: NIfTI file of the labels.
        meta: further meta-labels by name; a name that is absent is unknown.
    """

    name: str
    patient: str
    phase: str
    image: Path
    mask: Path
    meta: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Volume:
    """The content of a `Scan`.

    Attributes:
        image: (S, H, W) float32, the S slices in file order.
        mask: (S, H, W) uint8 labels.
        spacing_mm: (dz, dy, dx) in millimetres, from the header of the image.
        affine: (4, 4) float64 of the image, voxel (x, y, z) to millimetres.
    """

    image: FloatArray
    mask: LabelArray
    spacing_mm: Spacing
    affine: AffineArray


def read_image(path: Path | str) -> tuple[FloatArray, Spacing, AffineArray]:
    """Read a 3-D NIfTI file.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file.

    Returns:
        image (S, H, W) float32, spacing (dz, dy, dx) in millimetres, affine (4, 4) float64.

    Raises:
        DataError: if the file is missing, unreadable, truncated, not 3-D, not real-valued, has a
            voxel size that is not positive, or holds NaN or infinite values.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES) or not path.is_file():
        raise DataError(f"{path} must be an existing .nii or .nii.gz file, got no such file.")
    array, zooms, affine = _load(path)
    num_bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if num_bad:
        raise DataError(f"{path} must hold finite values, got {num_bad} NaN or infinite voxels.")
    if not all(np.isfinite(zoom) and zoom > 0 for zoom in zooms):
        raise DataError(f"{path} must have a positive voxel size, got {zooms} mm.")
    return np.ascontiguousarray(array.T), (zooms[2], zooms[1], zooms[0]), affine


def _load(path: Path) -> tuple[FloatArray, tuple[float, ...], AffineArray]:
    """Array (x, y, z), voxel size (dx, dy, dz) and affine of a 3-D NIfTI file."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    nifti: Any
    try:
        nifti = nibabel.load(path, mmap=False)
        if len(nifti.shape) != 3 or 0 in nifti.shape:
            raise DataError(f"{path} must hold a 3-D volume, got shape {tuple(nifti.shape)}.")
        if nifti.get_data_dtype().kind not in "biuf":
            raise DataError(f"{path} must hold real numbers, got {nifti.get_data_dtype()}.")
        with np.errstate(all="ignore"):  # values beyond float32 become inf and are refused
            array = np.asarray(nifti.dataobj, dtype=np.float32)
        zooms = tuple(float(zoom) for zoom in nifti.header.get_zooms())
        return array, zooms, np.asarray(nifti.affine, dtype=np.float64)
    except DataError:
        raise
    except (*_CONTENT_ERRORS, ImageFileError, HeaderDataError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} must be a complete NIfTI file, got: {reason}.") from error


def read_scan(scan: Scan, num_classes: int = 4) -> Volume:
    """Read the image and the labels of a scan.

    Args:
        scan: what to read.
        num_classes: labels must be integers in 0 .. num_classes - 1.

    Returns:
        The volume; spacing and affine are those of the image.

    Raises:
        DataError: whatever `read_image` refuses, image and labels of different shape, a label out
            of range.
    """
    image, spacing_mm, affine = read_image(scan.image)
    labels, _, _ = read_image(scan.mask)
    if image.shape != labels.shape:
        raise DataError(
            f"{scan.mask} must have the shape of its image, {image.shape[::-1]}, "
            f"got {labels.shape[::-1]}."
        )
    values = np.unique(labels)
    if values[0] < 0 or values[-1] > num_classes - 1 or np.any(values != np.rint(values)):
        bad = [v for v in values.tolist() if v != round(v) or not 0 <= v < num_classes]
        shown = ", ".join(f"{v:g}" for v in bad[:5]) + (", ..." if len(bad) > 5 else "")
        raise DataError(f"{scan.mask} must hold labels in 0..{num_classes - 1}, got {shown}.")
    return Volume(image, labels.astype(np.uint8), spacing_mm, affine)


def write_labels(path: Path | str, labels: LabelArray, affine: AffineArray) -> None:
    """Write labels as NIfTI, atomically: the file appears complete or not at all.

    Args:
        path: ``.nii`` or ``.nii.gz`` file to write; its folder must exist.
        labels: (S, H, W) uint8, on the grid of the image.
        affine: (4, 4) of the image; the voxel size in the header is taken from it.

    Raises:
        ValueError: if labels is not 3-D uint8, or path does not end in .nii or .nii.gz.
    """
    import nibabel

    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"path must end in .nii or .nii.gz, got {path}")
    if labels.ndim != 3 or labels.dtype != np.uint8:
        raise ValueError(f"labels must be 3-D uint8, got {labels.dtype} of shape {labels.shape}")
    nifti: Any = nibabel.Nifti1Image(labels.T, affine)  # type: ignore[no-untyped-call]
    nifti.header.set_xyzt_units("mm")
    partial = path.with_name(f".partial{os.getpid()}_{path.name}")
    try:
        nibabel.save(nifti, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
