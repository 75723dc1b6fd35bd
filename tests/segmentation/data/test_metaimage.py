"""MetaImage files, written by hand here: types, byte orders, compression, geometry, bad files.

The affine of a file is checked against the definition of its header fields; the real case, where
../shared/data exists, against figures in its header.
"""

import gzip
import os
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.metaimage import data_file, read_metaimage, write_metaimage
from spcl_fast.segmentation.data.volume import read_image

TYPES = {
    "MET_CHAR": np.int8,
    "MET_UCHAR": np.uint8,
    "MET_SHORT": np.int16,
    "MET_USHORT": np.uint16,
    "MET_INT": np.int32,
    "MET_UINT": np.uint32,
    "MET_LONG": np.int32,  # 4 bytes on every platform
    "MET_ULONG": np.uint32,
    "MET_LONG_LONG": np.int64,
    "MET_ULONG_LONG": np.uint64,
    "MET_FLOAT": np.float32,
    "MET_DOUBLE": np.float64,
}
HEADER = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "DimSize": "4 3 2",
    "ElementSpacing": "0.5 0.75 3",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "a.raw",
}


def write(folder, data=bytes(48), name="a.mhd", **changes):
    """A header with some keys changed, or left out where the value is None."""
    fields = {key: value for key, value in {**HEADER, **changes}.items() if value is not None}
    last = fields.pop("ElementDataFile", None)
    if last is not None:
        fields["ElementDataFile"] = last
    text = "".join(f"{key} = {value}\n" for key, value in fields.items())
    (folder / name).write_bytes(text.encode() + (data if last == "LOCAL" else b""))
    if last == "a.raw":
        (folder / "a.raw").write_bytes(data)
    return folder / name


@settings(max_examples=60, deadline=None)
@given(
    element_type=st.sampled_from(sorted(TYPES)),
    is_big=st.booleans(),
    order_key=st.sampled_from(["BinaryDataByteOrderMSB", "ElementByteOrderMSB"]),
    compressed=st.sampled_from([None, "zlib", "gzip"]),
    header_size=st.sampled_from([None, 0, 5, -1]),
    is_local=st.booleans(),
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    seed=st.integers(0, 99),
)
def test_what_is_written_is_read(
    tmp_path_factory,
    element_type,
    is_big,
    order_key,
    compressed,
    header_size,
    is_local,
    shape,
    seed,
):
    folder = tmp_path_factory.mktemp("metaimage")
    dtype = np.dtype(TYPES[element_type]).newbyteorder(">" if is_big else "<")
    bits = np.random.default_rng(seed).integers(0, 120, shape)  # fits every type
    array_zyx = bits.astype(dtype)
    data = array_zyx.tobytes()
    changes = {order_key: str(is_big), "ElementType": element_type}
    if compressed is not None:
        data = (zlib if compressed == "zlib" else gzip).compress(data)
        changes |= {"CompressedData": "True", "CompressedDataSize": len(data)}
    if header_size is not None:
        changes["HeaderSize"] = header_size
        data = b"x" * (7 if header_size < 0 else header_size) + data
    changes |= {"DimSize": " ".join(str(n) for n in reversed(shape))}
    path = write(folder, data, ElementDataFile="LOCAL" if is_local else "a.raw", **changes)
    array, spacing, _ = read_metaimage(path)
    np.testing.assert_array_equal(array, bits.T)
    assert array.dtype == TYPES[element_type]
    assert array.dtype.isnative
    assert spacing == (0.5, 0.75, 3.0)


# every name that a geometry field goes by
@pytest.mark.parametrize("axes_key", ["TransformMatrix", "Rotation", "Orientation"])
@pytest.mark.parametrize("offset_key", ["Offset", "Position", "Origin"])
def test_affine_is_the_definition(tmp_path, axes_key, offset_key):
    axes = np.array([[0, 1, 0], [0.6, 0, -0.8], [-0.8, 0, -0.6]])  # a row an image axis
    text = " ".join(map(str, axes.ravel()))
    path = write(tmp_path, **{axes_key: text, offset_key: "10 20 30"})
    _, _, affine = read_metaimage(path)
    index, spacing = np.array([3, 2, 1]), np.array([0.5, 0.75, 3])
    lps = np.array([10, 20, 30]) + sum(index[k] * spacing[k] * axes[k] for k in range(3))
    np.testing.assert_allclose(affine @ [*index, 1], [-lps[0], -lps[1], lps[2], 1])


def test_without_geometry_voxels_are_millimetres(tmp_path):
    _, spacing, affine = read_metaimage(write(tmp_path, ElementSpacing=None))
    assert spacing == (1.0, 1.0, 1.0)
    np.testing.assert_array_equal(affine, np.diag([-1.0, -1.0, 1.0, 1.0]))
    _, spacing, _ = read_metaimage(write(tmp_path, ElementSpacing=None, ElementSize="2 2 5"))
    assert spacing == (2.0, 2.0, 5.0)


# the integer and floating point types of numpy, and one byte order of each
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", ">i2", "u4", "i8", "f4", ">f8"])
def test_write_metaimage_round_trip(tmp_path, dtype):
    array = np.random.default_rng(0).integers(0, 100, (2, 3, 4)).astype(dtype)
    write_metaimage(tmp_path / "a.mhd", array, (8.0, 1.25, 1.5))
    image, spacing_mm, _ = read_image(tmp_path / "a.mhd")
    np.testing.assert_array_equal(image, array)
    assert image.dtype == np.float32
    assert spacing_mm == (8.0, 1.25, 1.5)
    assert data_file(tmp_path / "a.mhd") == tmp_path / "a.raw"
    assert read_metaimage(tmp_path / "a.mhd")[0].dtype == np.dtype(dtype).newbyteorder("=")


def test_write_metaimage_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in \.mhd"):
        write_metaimage(tmp_path / "a.mha", np.zeros((2, 3, 4), np.int16), (1, 1, 1))
    for bad in (np.zeros((2, 3)), np.zeros((2, 3, 4), bool), np.zeros((2, 3, 4), np.complex64)):
        with pytest.raises(ValueError, match="array_zyx must be a 3-D array of numbers"):
            write_metaimage(tmp_path / "a.mhd", bad, (1, 1, 1))


# each rule of the reader broken once
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ElementDataFile": None}, "header up to ElementDataFile, got none"),
        ({"NDims": "4"}, "4 numbers in DimSize, got '4 3 2'"),
        ({"NDims": "4", "DimSize": "4 3 2 2"}, "3-D volume, got NDims 4, sizes"),
        ({"NDims": "2", "DimSize": "4 6"}, "3-D volume, got NDims 2"),
        ({"NDims": "9" * 5000}, "3-D volume, got NDims 999"),
        ({"NDims": None}, "3-D volume, got NDims None"),
        ({"DimSize": "4 3"}, "3 numbers in DimSize, got '4 3'"),
        ({"DimSize": "4 3 0"}, "positive sizes in DimSize"),
        ({"DimSize": "4 3 1.5"}, "positive sizes in DimSize"),
        ({"DimSize": None}, "3 numbers in DimSize"),
        ({"DimSize": "4 3 999"}, "a.raw must hold 23976 bytes of voxels, got 48"),
        ({"ElementType": "MET_OTHER"}, "one number per voxel, got ElementType MET_OTHER"),
        ({"ElementNumberOfChannels": "3"}, "one number per voxel, .* and 3 channels"),
        ({"BinaryData": "False"}, "must hold binary data"),
        ({"ElementSpacing": "1 nan 1"}, "3 numbers in ElementSpacing"),
        ({"TransformMatrix": "1 0 0"}, "9 numbers in TransformMatrix"),
        ({"ElementDataFile": "b.raw"}, "b.raw must hold the voxels of a.mhd"),
        ({"ElementDataFile": "LIST"}, "voxels in one file, got ElementDataFile LIST"),
        ({"ElementDataFile": "s%03d.raw 1 9 1"}, "voxels in one file"),
        ({"HeaderSize": "many"}, "must hold the voxels of a.mhd, got invalid literal"),
        ({"HeaderSize": "9"}, "48 bytes of voxels, got 39"),
        ({"CompressedData": "True"}, "must hold compressed voxels"),
        ({"CompressedData": "True", "DimSize": "4000000000 4000000000 9"}, "a.raw must hold"),
    ],
)
def test_bad_headers(tmp_path, changes, message):
    path = write(tmp_path, **changes)
    with pytest.raises(DataError, match=message) as error:
        read_metaimage(path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_spacing_is_told_by_read_image(tmp_path):
    with pytest.raises(DataError, match="positive voxel size"):
        read_image(write(tmp_path, ElementSpacing="1 1 0"))


# an .mha cut anywhere, and each of its bytes changed: an image or a DataError, nothing else
def test_damaged_files(tmp_path):
    data = zlib.compress(np.arange(24, dtype="<i2").tobytes())
    good = write(tmp_path, data, "a.mha", CompressedData="True", ElementDataFile="LOCAL")
    content = good.read_bytes()
    for length in range(len(content)):
        good.write_bytes(content[:length])
        with pytest.raises(DataError):
            read_metaimage(good)
    rng = np.random.default_rng(1)
    refused = 0
    for position in range(len(content)):
        bad = bytearray(content)
        bad[position] ^= int(rng.integers(1, 256))
        good.write_bytes(bytes(bad))
        try:
            read_metaimage(good)
        except DataError:
            refused += 1
    assert refused > 50


def test_missing_and_other_files(tmp_path):
    with pytest.raises(DataError, match="readable MetaImage file"):
        read_metaimage(tmp_path / "absent.mhd")
    (tmp_path / "a.mhd").write_bytes(b"\x00\x01\x02" * 400_000)
    with pytest.raises(DataError, match="MetaImage header"):
        read_metaimage(tmp_path / "a.mhd")


def test_windows_line_ends(tmp_path):
    path = write(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_metaimage(path)[0].shape == (4, 3, 2)


def test_real_case(real_data):
    folder = real_data / "promise12_layout_sample" / "training_data"
    image, spacing_mm, affine = read_image(folder / "Case00.mhd")
    assert image.shape == (19, 384, 384)
    assert spacing_mm == pytest.approx((3.0, 0.5, 0.5), rel=1e-6)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), (0.5, 0.5, 3.0), rtol=1e-6)
    np.testing.assert_allclose(affine[:3, 3], (57.685436, 82.363060, -27.080757), rtol=1e-6)
    mask, _, _ = read_image(folder / "Case00_segmentation.mhd")
    assert np.unique(mask).tolist() == [0, 1]
    # the labelled organ lies in the middle of the image, not mirrored into a corner
    centre = np.argwhere(mask).mean(axis=0) / mask.shape
    assert np.all(np.abs(centre - 0.5) < 0.2)


# UTF-8 of two scripts; Latin-1; a file whose name another system wrote decomposed
@pytest.mark.parametrize(
    ("name", "encoding", "on_disk"),
    [
        ("Gr\u00f6\u00dfe 1.raw", "utf-8", "Gr\u00f6\u00dfe 1.raw"),
        ("\u524d\u5217\u817a.raw", "utf-8", "\u524d\u5217\u817a.raw"),
        ("Gr\u00f6\u00dfe.raw", "latin-1", "Gr\u00f6\u00dfe.raw"),
        ("Gr\u00f6\u00dfe.raw", "latin-1", os.fsdecode(b"Gr\xf6\xdfe.raw")),
        ("Gr\u00f6\u00dfe.raw", "utf-8", "Gr\u00c3\u00b6\u00c3\u009fe.raw"),
        ("Gr\u00f6\u00dfe.raw", "utf-8", "Gro\u0308\u00dfe.raw"),
    ],
)
def test_name_of_the_data_beyond_ascii(tmp_path, name, encoding, on_disk):
    array = np.arange(24, dtype="<i2").reshape(4, 3, 2)
    (tmp_path / on_disk).write_bytes(array.tobytes(order="F"))
    header = f"NDims = 3\nDimSize = 4 3 2\nElementType = MET_SHORT\nElementDataFile = {name}\n"
    (tmp_path / "a.mhd").write_bytes(header.encode(encoding))
    np.testing.assert_array_equal(read_metaimage(tmp_path / "a.mhd")[0], array)


def test_byte_order_mark_before_the_header(tmp_path):
    data = np.arange(24, dtype="<i2").tobytes()
    path = write(tmp_path, data, "a.mha", ElementDataFile="LOCAL")
    expected = read_metaimage(path)[0]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().removeprefix(b"ObjectType = Image\n"))
    np.testing.assert_array_equal(read_metaimage(path)[0], expected)
