"""The volumes in image files of three formats, as (x, y, z) arrays.

.nii, .nii.gz    NIfTI, by nibabel; of a 4-D file one frame is read, and only that one
.mhd, .mha       MetaImage
.h5              HDF5 with arrays (slice, row, column), by h5py, which is optional; the files
                 have no geometry, so a nominal spacing is used
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from spcl_fast.segmentation.data import metaimage
from spcl_fast.segmentation.data.arrays import FloatArray
from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.geometry import Geometry, checked, nifti_geometry

Contents = tuple[FloatArray, Geometry]

NIFTI_SUFFIXES = (".nii.gz", ".nii")
HDF5_SUFFIX = ".h5"
SUFFIXES = (*NIFTI_SUFFIXES, *metaimage.SUFFIXES, HDF5_SUFFIX)
NOMINAL_SPACING_MM = (1.5, 1.5, 10.0)  # (dx, dy, dz), near ACDC's median, for files without one
_CONTENT_ERRORS = (
    *(OSError, EOFError, zlib.error),  # truncated or corrupt
    *(ValueError, TypeError, KeyError, OverflowError, MemoryError),  # invalid headers
)


def load(
    path: Path, frame: int | None = None, dataset: str = "image", *, may_lack_frames: bool = False
) -> Contents:
    """Read one 3-D volume.

    Args:
        path: The file; its format is known by its suffix.
        frame: Place along the fourth axis of a 4-D NIfTI file; None for a 3-D file. Axes of
            length 1 after the third do not count.
        dataset: Name of the array in an HDF5 file.
        may_lack_frames: Accept a 3-D file although a frame is given, and ignore the frame.

    Returns:
        array (x, y, z) float32, and where its voxels lie.

    Raises:
        DataError: The file is missing, of another format, incomplete, not real-valued, not 3-D,
            has no such frame or array, or an invalid geometry.
    """
    suffix = suffix_of(path).lower()
    if not suffix or not path.is_file():
        raise DataError(f"{path} must be an existing {', '.join(SUFFIXES)} file, got none.")
    if suffix in NIFTI_SUFFIXES:
        return _load_nifti(path, frame, may_lack_frames=may_lack_frames)
    if frame is not None and not may_lack_frames:
        raise DataError(f"{path} must be a 4-D NIfTI file to have frame {frame}, got {path.name}.")
    if suffix == HDF5_SUFFIX:
        return _load_hdf5(path, dataset)
    array, spacing_mm, affine = metaimage.read_metaimage(path)
    notes = (
        ()
        if metaimage.states_spacing(path)
        else (f"{path} must have ElementSpacing, got none: 1 mm is used.",)
    )
    geometry = Geometry(path, array.shape, spacing_mm, affine, notes=notes)
    return array.astype(np.float32), checked(geometry)


def suffix_of(path: Path) -> str:
    """Return the suffix of an image file as it is written, in any case, or ""."""
    name = path.name.lower()
    suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")
    return path.name[len(name) - len(suffix) :]


def num_volumes(path: Path) -> int:
    """Return how many 3-D volumes an image holds: the length of its fourth axis, or 1.

    Raises:
        DataError: A NIfTI file cannot be read.
    """
    if suffix_of(path).lower() not in NIFTI_SUFFIXES or not path.is_file():
        return 1
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    nifti: Any
    try:
        nifti = nibabel.load(path, mmap=False)
    except (*_CONTENT_ERRORS, ImageFileError, HeaderDataError) as error:
        raise DataError(f"{path} must be a complete NIfTI file, got: {_reason(error)}.") from error
    return int(nifti.shape[3]) if len(nifti.shape) > 3 else 1


def files_of(path: Path) -> list[Path]:
    """Return the files of an image: a ``.mhd`` header keeps its voxels in another file.

    Raises:
        DataError: A MetaImage header cannot be read.
    """
    if suffix_of(path).lower() in metaimage.SUFFIXES:
        return [path, metaimage.data_file(path)]
    return [path]


def _load_nifti(path: Path, frame: int | None, *, may_lack_frames: bool) -> Contents:
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    nifti: Any
    try:
        _check_stream(path)
        nifti = nibabel.load(path, mmap=False)
        shape = tuple(nifti.shape)
        num_axes = len(shape)
        while len(shape) > (3 if frame is None or may_lack_frames else 4) and shape[-1] == 1:
            shape = shape[:-1]
        if may_lack_frames and len(shape) == 3:
            frame = None
        if len(shape) != (3 if frame is None else 4) or 0 in shape:
            wanted = "a 3-D volume" if frame is None else "4-D frames"
            raise DataError(f"{path} must hold {wanted}, got shape {shape}.")
        if frame is not None and not 0 <= frame < shape[3]:
            raise DataError(f"{path} must hold frame {frame} (from 0), got {shape[3]} frames.")
        if nifti.get_data_dtype().kind not in "biuf":
            raise DataError(f"{path} must hold real numbers, got {nifti.get_data_dtype()}.")
        with np.errstate(all="ignore"):  # values beyond float32 become inf and are refused
            place = (slice(None),) * 3 + (frame or 0, *(0,) * (num_axes - 4))
            source = nifti.dataobj if num_axes == 3 else nifti.dataobj[place]
            array = np.asarray(source, dtype=np.float32)
        return array, nifti_geometry(path, nifti.header, _pixdim(path, type(nifti.header)))
    except DataError:
        raise
    except (*_CONTENT_ERRORS, ImageFileError, HeaderDataError) as error:
        raise DataError(f"{path} must be a complete NIfTI file, got: {_reason(error)}.") from error


def _check_stream(path: Path) -> None:
    """Read a compressed file to its end, where its checksum is; nibabel stops at the last voxel."""
    if suffix_of(path).lower().endswith(".gz"):
        with gzip.open(path) as file:
            while file.read(1 << 16):
                pass


def _pixdim(path: Path, kind: Any) -> tuple[float, ...]:
    """Return the voxel size in a NIfTI header as it is written."""
    from nibabel.openers import ImageOpener

    with ImageOpener(str(path)) as file:
        header = kind(file.read(kind.template_dtype.itemsize), check=False)
    return tuple(float(size) for size in header["pixdim"][1:4])


def has_dataset(path: Path, name: str) -> bool:
    """Return whether an HDF5 file holds an array; True where that cannot be seen here."""
    try:
        import h5py

        with h5py.File(path, "r") as file:
            return name in file
    except (ImportError, *_CONTENT_ERRORS, RuntimeError):
        return True


def _load_hdf5(path: Path, dataset: str) -> Contents:
    try:
        import h5py  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        raise DataError(f"{path} needs h5py to be read: pip install h5py.") from error
    try:
        with h5py.File(path, "r") as file:
            if dataset not in file:
                raise DataError(f"{path} must hold an array '{dataset}', got {sorted(file)}.")
            array = np.asarray(file[dataset])
    except DataError:
        raise
    except (*_CONTENT_ERRORS, RuntimeError) as error:
        raise DataError(f"{path} must be a complete HDF5 file, got: {_reason(error)}.") from error
    if array.ndim != 3 or 0 in array.shape or array.dtype.kind not in "biuf":
        raise DataError(
            f"{path} must hold '{dataset}' as a 3-D volume of real numbers, "
            f"got {array.dtype} of shape {array.shape}."
        )
    with np.errstate(all="ignore"):
        volume = array.T.astype(np.float32)
    affine = np.diag([*NOMINAL_SPACING_MM, 1.0])
    return volume, Geometry(path, volume.shape, NOMINAL_SPACING_MM, affine, is_placed=False)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
