"""MetaImage files: ``.mhd`` with its ``.raw``, or both in one ``.mha``.

A header of ``Key = value`` lines, in UTF-8 or Latin-1, ends with ElementDataFile, the name of the
data or LOCAL. Keys that do not change the array or its geometry are ignored, AnatomicalOrientation
among them.

MetaImage positions are in the patient frame of DICOM: x to the left, y to the back, z to the head
(LPS). NIfTI's x and y run the other way (RAS). With voxel index (i, j, k), spacing s and M whose
rows in the file are the directions of the image axes,

    position_LPS = Offset + M^T diag(s) (i, j, k)        position_RAS = diag(-1, -1, 1) position_LPS
"""

from __future__ import annotations

import codecs
import math
import os
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spcl_fast.segmentation.data.arrays import AffineArray, Spacing
from spcl_fast.segmentation.data.errors import DataError

SUFFIXES = (".mhd", ".mha")
_DTYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2"},
    **{"MET_INT": "i4", "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4"},  # 4 bytes in MetaIO
    **{"MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
_ELEMENT_TYPES = {dtype: name for name, dtype in reversed(_DTYPES.items())}
_MAX_HEADER_BYTES = 1 << 20
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def read_metaimage(
    path: Path | str,
) -> tuple[NDArray[Any], tuple[float, ...], AffineArray]:
    """Read a 3-D image of one channel; further axes of length 1 are left out.

    Args:
        path: ``.mhd`` or ``.mha`` file.

    Returns:
        array indexed (x, y, z), in the type of the file; spacing (dx, dy, dz) in millimetres;
        affine (4, 4), voxel (x, y, z) to millimetres in NIfTI's RAS frame.

    Raises:
        DataError: The file is missing, truncated, or of a kind that is not read: not 3-D, text
            data, several channels, one file per slice, an unknown element type.
    """
    path = Path(path)
    header, header_bytes = _read_header(path)
    shape, dtype = _shape(path, header), _dtype(path, header)
    spacing = _numbers(path, header, ("ElementSpacing", "ElementSize"), 1.0)
    affine = _affine(path, header, spacing)
    data = _data(path, header, header_bytes, math.prod(shape) * dtype.itemsize)
    array = np.frombuffer(data, dtype).reshape(shape, order="F")
    return array.astype(dtype.newbyteorder("="), copy=False), spacing, affine


def states_spacing(path: Path) -> bool:
    """Return whether a MetaImage states its voxel size; without it 1 mm is the default."""
    return not {"ElementSpacing", "ElementSize"}.isdisjoint(_read_header(path)[0])


def data_file(path: Path | str) -> Path:
    """Return the file that holds the voxels of a MetaImage, which may be the file itself.

    Raises:
        DataError: The header cannot be read or names several files.
    """
    path = Path(path)
    name = _read_header(path)[0]["ElementDataFile"]
    if name.upper() == "LOCAL":
        return path
    if name.upper().startswith("LIST") or "%" in name:
        raise DataError(f"{path} must keep its voxels in one file, got ElementDataFile {name}.")
    found = (path.parent / spelled for spelled in _spellings(name))
    return next((file for file in found if file.is_file()), path.parent / name)


def _spellings(name: str) -> Iterator[str]:
    """Yield a name of a data file as other systems and encodings have it on disk."""
    yield name
    yield from (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    yield name.encode(errors="replace").decode("latin-1")
    yield os.fsdecode(name.encode("latin-1", errors="replace"))


def write_metaimage(path: Path, array_zyx: NDArray[Any], spacing_mm: Spacing) -> None:
    """Write a volume as ``.mhd`` and, beside it, ``.raw``: axes along the patient's, origin 0.

    Args:
        path: The ``.mhd`` file; its folder must exist.
        array_zyx: (S, H, W) of a fixed-size integer or floating point type.
        spacing_mm: (dz, dy, dx).

    Raises:
        ValueError: `path` does not end in .mhd, or array_zyx is not 3-D or of another type.
    """
    kind = array_zyx.dtype.str[1:]
    if path.suffix != ".mhd":
        raise ValueError(f"path must end in .mhd, got {path}")
    if array_zyx.ndim != 3 or kind not in _ELEMENT_TYPES:
        raise ValueError(
            f"array_zyx must be a 3-D array of numbers, got {array_zyx.dtype} {array_zyx.shape}"
        )
    raw = path.with_suffix(".raw")
    raw.write_bytes(np.ascontiguousarray(array_zyx).astype(f"<{kind}", copy=False).tobytes())
    header = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "CompressedData": False,
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "ElementSpacing": " ".join(f"{float(size)!r}" for size in reversed(spacing_mm)),
        "DimSize": " ".join(str(size) for size in reversed(array_zyx.shape)),
        "ElementType": _ELEMENT_TYPES[kind],
        "ElementDataFile": raw.name,
    }
    text = "".join(f"{key} = {value}\n" for key, value in header.items())
    path.write_text(text, encoding="ascii")


def _read_header(path: Path) -> tuple[dict[str, str], int]:
    """Return keys and values, and the length of the header in bytes."""
    try:
        with path.open("rb") as file:
            start = file.read(_MAX_HEADER_BYTES)
    except OSError as error:
        raise DataError(f"{path} must be a readable MetaImage file, got {error}.") from error
    header: dict[str, str] = {}
    position = len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0
    while "ElementDataFile" not in header:
        end = start.find(b"\n", position)
        end = len(start) if end < 0 else end
        key, equals, value = _text(start[position:end]).partition("=")
        if position >= len(start) or not (equals or not key.strip()):
            raise DataError(f"{path} must be a MetaImage header up to ElementDataFile, got none.")
        if equals:
            header[key.strip()] = value.strip()
        position = end + 1
    return header, position


def _text(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1")


def _is_true(header: dict[str, str], *keys: str) -> bool:
    return any(header.get(key, "").lower() in ("true", "1") for key in keys)


def _numbers(
    path: Path, header: dict[str, str], keys: tuple[str, ...], default: float
) -> tuple[float, ...]:
    """Return the first three numbers of the first of some keys that is present."""
    text = next((header[key] for key in keys if key in header), None)
    return (default,) * 3 if text is None else _parsed(path, text, keys[0], _num_axes(header))[:3]


def _num_axes(header: dict[str, str]) -> int:
    text = header.get("NDims", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else 0


def _parsed(path: Path, text: str, key: str, count: int) -> tuple[float, ...]:
    try:
        values = tuple(float(word) for word in text.split())
    except ValueError:
        values = ()
    if len(values) != count or not all(map(math.isfinite, values)):
        raise DataError(f"{path} must have {count} numbers in {key}, got '{text[:60]}'.")
    return values


def _shape(path: Path, header: dict[str, str]) -> tuple[int, ...]:
    num_axes = _num_axes(header)
    if num_axes < 3:
        raise DataError(f"{path} must hold a 3-D volume, got NDims {header.get('NDims')}.")
    sizes = _parsed(path, header.get("DimSize", ""), "DimSize", num_axes)
    shape = tuple(int(size) for size in sizes)
    if shape != sizes or min(shape) < 1:
        raise DataError(f"{path} must have positive sizes in DimSize, got {header['DimSize']}.")
    if shape[3:] != (1,) * (num_axes - 3):
        raise DataError(f"{path} must hold a 3-D volume, got NDims {num_axes}, sizes {shape}.")
    return shape[:3]


def _dtype(path: Path, header: dict[str, str]) -> np.dtype[Any]:
    name, channels = header.get("ElementType"), header.get("ElementNumberOfChannels", "1")
    if name not in _DTYPES or channels != "1":
        raise DataError(
            f"{path} must hold one number per voxel, "
            f"got ElementType {name} and {channels} channels."
        )
    if header.get("BinaryData", "True").lower() in ("false", "0"):
        raise DataError(f"{path} must hold binary data, got BinaryData False.")
    is_big = _is_true(header, "BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    return np.dtype(f"{'>' if is_big else '<'}{_DTYPES[name]}")


def _affine(path: Path, header: dict[str, str], spacing: tuple[float, ...]) -> AffineArray:
    keys = ("TransformMatrix", "Rotation", "Orientation")
    text = next((header[key] for key in keys if key in header), None)
    axes, num_axes = np.eye(3), _num_axes(header)
    if text is not None:
        numbers = _parsed(path, text, keys[0], num_axes**2)
        axes = np.reshape(numbers, (num_axes, num_axes))[:3, :3]
    offset = _numbers(path, header, ("Offset", "Position", "Origin"), 0.0)
    affine = np.eye(4)
    affine[:3, :3] = _LPS_TO_RAS @ axes.T @ np.diag(spacing)
    affine[:3, 3] = _LPS_TO_RAS @ np.array(offset)
    return affine


def _data(path: Path, header: dict[str, str], header_bytes: int, num_bytes: int) -> bytes:
    """Return the voxels' `num_bytes` bytes."""
    source = data_file(path)
    skip = header_bytes if source == path else 0
    try:
        header_size = int(header.get("HeaderSize", "0"))
        compressed_size = int(header.get("CompressedDataSize", "0"))
        content = source.read_bytes()[skip:]
    except (OSError, ValueError) as error:
        raise DataError(f"{source} must hold the voxels of {path.name}, got {error}.") from error
    is_compressed = _is_true(header, "CompressedData")
    if header_size < 0:  # the voxels are at the end of the file
        content = content[-((compressed_size or len(content)) if is_compressed else num_bytes) :]
    content = content[max(0, header_size) :]
    if is_compressed:
        try:
            # 47: zlib or gzip header. One byte more than needed, so that the checksum at the end
            # of the stream is verified, while a decompression bomb is not unpacked.
            unpacker = zlib.decompressobj(47)
            content = unpacker.decompress(content, num_bytes + 1)
            if len(content) == num_bytes and not unpacker.eof:
                raise zlib.error("a stream that ends too early")
        except (zlib.error, OverflowError, MemoryError) as error:
            raise DataError(f"{source} must hold compressed voxels, got {error}.") from error
    if len(content) != num_bytes:
        raise DataError(f"{source} must hold {num_bytes} bytes of voxels, got {len(content)}.")
    return content
