"""Where the voxels of a file lie, in millimetres, and whether two files agree.

The affine A maps a voxel (x, y, z) to millimetres. The voxel size is the length of A's columns; a
header that states it again may differ by rounding. Voxels p of a mask and q of its image are the
same if q = A_image^-1 A_mask p: a mask that another tool stored with its axes reversed or in
another order is brought to the axes of the image, any other disagreement is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spcl_fast.segmentation.data.arrays import AffineArray, FloatArray
from spcl_fast.segmentation.data.errors import DataError

TOLERANCE_VOXELS = 0.1  # at the corners of the image
_ROUNDING = 1e-3  # relative, between the voxel size in a header and in its affine
_FLAT = 1e-6  # volume of a voxel over the product of its sides, below which axes coincide
_SMALL_MM, _LARGE_MM = 0.02, 100.0  # no clinical scan has voxels beyond
_SKEW = 0.02  # cosine between axes, 1 degree from a right angle
_SPACES = (3, 4)  # NIfTI codes of Talairach and MNI: no place in the scanner
_MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI: metre, millimetre, micron


@dataclass(frozen=True)
class Geometry:
    """The place of the voxels of one file.

    Attributes:
        path: The file.
        shape: Voxels along x, y and z.
        spacing_mm: Voxel size (dx, dy, dz) in millimetres.
        affine: (4, 4) float64, voxel (x, y, z) to millimetres.
        is_placed: The file says where it lies; without that only its voxel size is known.
        notes: Sentences about what contradicts itself in the file and what was used.
    """

    path: Path
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    affine: AffineArray
    is_placed: bool = True
    notes: tuple[str, ...] = ()


def checked(geometry: Geometry) -> Geometry:
    """Return a geometry whose voxel size is that of its affine.

    Args:
        geometry: As a header states it.

    Raises:
        DataError: The voxel size is not positive, or the affine not finite and invertible.
    """
    path, stated, notes = geometry.path, geometry.spacing_mm, list(geometry.notes)
    if not all(np.isfinite(size) and size > 0 for size in stated):
        raise DataError(f"{path} must have a positive voxel size, got {_listed(stated)} mm.")
    if not is_affine(geometry.affine):
        rows = "; ".join(_listed(row) for row in geometry.affine[:3])
        raise DataError(f"{path} must have a finite affine with an inverse, got rows {rows}.")
    lengths = np.linalg.norm(geometry.affine[:3, :3], axis=0)
    spacing = stated
    if not np.allclose(lengths, stated, rtol=_ROUNDING, atol=0):
        spacing = tuple(lengths.tolist())
        notes.append(
            f"{path} must have the voxel size of its affine, {_listed(spacing)} mm (used), "
            f"got {_listed(stated)} mm in the header."
        )
    axes = geometry.affine[:3, :3] / lengths
    if np.abs(axes.T @ axes - np.eye(3)).max() > _SKEW:
        notes.append(f"{path} must have axes at right angles, got others: its slices are skewed.")
    if not _SMALL_MM <= max(spacing) <= _LARGE_MM:
        bound = f"at most {_LARGE_MM:g}" if max(spacing) > _LARGE_MM else f"at least {_SMALL_MM:g}"
        notes.append(
            f"{path} must have voxels of {bound} mm, got {_listed(spacing)} mm: "
            "check the unit in its header."
        )
    return Geometry(path, geometry.shape, spacing, geometry.affine, geometry.is_placed, (*notes,))


def is_affine(affine: AffineArray) -> bool:
    """Return whether an affine is finite and has an inverse."""
    if not np.isfinite(affine).all():
        return False
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(sides.min() > 0 and abs(np.linalg.det(affine[:3, :3] / sides)) > _FLAT)


def nifti_geometry(path: Path, header: Any, stated: Sequence[float]) -> Geometry:
    """Return the geometry in a NIfTI header: the sform, else the qform, else the voxel size.

    Args:
        path: The file.
        header: nibabel's.
        stated: pixdim[1:4] as it is in the file; nibabel replaces values that are not positive.

    Raises:
        DataError: As `checked`.
    """
    shape = header.get_data_shape()[:3]
    sform, qform = (_coded_form(header, name) for name in ("sform", "qform"))
    notes = []
    affine = sform if sform is not None else qform
    if sform is not None and qform is not None and not is_affine(sform):
        affine = qform
        notes.append(
            f"{path} must have a finite sform with an inverse, got another; its qform is used."
        )
    elif sform is not None and qform is not None:
        is_same = is_affine(qform) and _agree(shape, sform, qform)
        if not is_same and int(header["sform_code"]) not in _SPACES:
            notes.append(f"{path} must have a sform and a qform that agree; its sform is used.")
    is_placed = affine is not None
    if affine is None:
        affine = header.get_base_affine()
    scale = _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    affine = np.diag([scale, scale, scale, 1.0]) @ np.asarray(affine, np.float64)
    spacing = tuple(float(size) * scale for size in stated)
    return checked(Geometry(path, shape, spacing, affine, is_placed, (*notes,)))


def _coded_form(header: Any, name: str) -> AffineArray | None:
    from nibabel.spatialimages import HeaderDataError

    try:
        affine, _ = getattr(header, f"get_{name}")(coded=True)
    except (HeaderDataError, ValueError):  # an invalid quaternion
        affine = np.full((4, 4), np.nan)
    return None if affine is None else np.asarray(affine, np.float64)


def to_axes_of(image: Geometry, array: FloatArray, mask: Geometry) -> FloatArray:
    """Return the voxels of a mask in the order of its image.

    Args:
        image: Geometry of the image.
        array: (x, y, z) of the mask.
        mask: Geometry of the mask.

    Returns:
        A view of `array`, with the shape of the image.

    Raises:
        DataError: The two differ in shape, or in place by more than a tenth of a voxel after any
            exchange and reversal of the mask's axes.
    """
    if sorted(image.shape) != sorted(mask.shape):
        raise DataError(
            f"{mask.path} must have the shape of its image, {image.shape}, got {mask.shape}; "
            f"the image is {image.path}."
        )
    # without a place of its own a file has no axes to exchange
    may_move = image.is_placed and mask.is_placed
    orders = itertools.permutations(range(3)) if may_move else [(0, 1, 2)]
    signs = list(itertools.product((1, -1), repeat=3)) if may_move else [(1, 1, 1)]
    for order, sign in itertools.product(orders, signs):
        shape = tuple(mask.shape[axis] for axis in order)
        if shape == image.shape and _agree(
            shape, image.affine, mask.affine @ _moved(shape, order, sign)
        ):
            return array.transpose(order)[tuple(slice(None, None, step) for step in sign)]
    raise DataError(
        f"{mask.path} must lie where its image {image.path} lies, to {TOLERANCE_VOXELS:g} voxel, "
        f"got {_axes(mask)} instead of {_axes(image)}."
    )


def _moved(shape: Sequence[int], order: Sequence[int], sign: Sequence[int]) -> AffineArray:
    """Return the map from voxels of the transposed and reversed array to those of the array."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for axis, source in enumerate(order):
        matrix[source, axis] = sign[axis]
        matrix[source, 3] = shape[axis] - 1 if sign[axis] < 0 else 0
    return matrix


def _agree(shape: Sequence[int], one: AffineArray, other: AffineArray) -> bool:
    """Return whether two affines put every corner of an image in the same place."""
    corners = np.array([*itertools.product(*((0, size - 1) for size in shape), (1,))])
    difference: NDArray[np.float64] = np.linalg.solve(one, other) @ corners.T - corners.T
    return bool(np.abs(difference[:3]).max() <= TOLERANCE_VOXELS)


def _axes(geometry: Geometry) -> str:
    """Describe a geometry in a few words."""
    if not geometry.is_placed:
        return f"no place and voxels of {_listed(geometry.spacing_mm)} mm"
    first, *_, last = itertools.product(*((0, size - 1) for size in geometry.shape))
    ends = (_listed((geometry.affine @ [*corner, 1])[:3]) for corner in (first, last))
    return " to ".join(ends) + " mm"


def _listed(values: Sequence[float] | NDArray[Any]) -> str:
    return f"({', '.join(f'{float(value):.6g}' for value in values)})"
