"""Where voxels lie: masks in other axes than their image, geometry that is none, units.

The object is 3 voxels at known places of a (4, 3, 2) image, so each right mask is written by hand.
"""

import gzip
import itertools
import struct
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.inspect import inspect
from spcl_fast.segmentation.data.scan import Scan
from spcl_fast.segmentation.data.volume import read_image, read_labels, read_scan, write_labels

AFFINE = np.array([[1.5, 0, 0, -7], [0, 1.25, 0, 4], [0, 0, 8.0, 100], [0, 0, 0, 1]])
OBLIQUE = np.array([[0.6, -0.8, 0, 5], [0.8, 0.6, 0, -3], [0, 0, 3.0, 2], [0, 0, 0, 1]])
TRUE = np.zeros((4, 3, 2), np.uint8)
TRUE[0, 0, 0], TRUE[1, 2, 0], TRUE[3, 0, 1] = 1, 2, 3


def save(path, array, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(array), affine), path)


@pytest.fixture
def scan(tmp_path):
    save(tmp_path / "a.nii.gz", np.arange(24, dtype=np.int16).reshape(TRUE.shape))
    save(tmp_path / "a_gt.nii.gz", TRUE)
    return Scan("a", "a", None, tmp_path / "a.nii.gz", tmp_path / "a_gt.nii.gz")


def patch(path, offset, layout, *values):
    """Overwrite header fields of a .nii.gz as they are on disk."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(layout, content, offset, *values)
    path.write_bytes(gzip.compress(bytes(content)))


# every way to store three axes, along the patient's axes and across them
@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_mask_is_brought_to_the_axes_of_its_image(scan, affine, order, signs):
    save(scan.image, np.arange(24, dtype=np.int16).reshape(TRUE.shape), affine)
    ornt = np.array(list(zip(order, signs, strict=True)), dtype=float)
    nibabel.save(nibabel.Nifti1Image(TRUE, affine).as_reoriented(ornt), scan.mask)
    volume = read_scan(scan)
    np.testing.assert_array_equal(volume.mask, TRUE.T)
    np.testing.assert_array_equal(volume.image, np.arange(24).reshape(TRUE.shape).T)
    np.testing.assert_allclose(volume.affine, affine, rtol=1e-6)


def test_flip_along_x_by_hand(scan):
    moved = AFFINE.copy()
    moved[0, 0], moved[0, 3] = -1.5, -7 + 3 * 1.5  # voxel 0 of the mask is voxel 3 of the image
    save(scan.mask, TRUE[::-1], moved)
    mask = read_scan(scan).mask
    assert (mask[0, 0, 0], mask[0, 2, 1], mask[1, 0, 3]) == (1, 2, 3)
    assert np.count_nonzero(mask) == 3
    sagittal = read_scan(replace(scan, stack_axis=0)).mask  # (x, z, y)
    assert (sagittal[0, 0, 0], sagittal[1, 0, 2], sagittal[3, 1, 0]) == (1, 2, 3)


def test_labels_written_for_a_flipped_mask_lie_on_the_image(scan, tmp_path):
    moved = AFFINE.copy()
    moved[0, 0], moved[0, 3] = -1.5, -7 + 3 * 1.5
    save(scan.mask, TRUE[::-1], moved)
    volume = read_scan(scan)
    write_labels(tmp_path / "p.nii.gz", volume.mask, volume.affine)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "p.nii.gz").dataobj, TRUE)


# less than a tenth of a voxel of 1.5 mm, and more
@pytest.mark.parametrize(("shift_mm", "is_taken"), [(0.14, True), (0.16, False), (1.5, False)])
def test_tolerance_is_a_tenth_of_a_voxel(scan, shift_mm, is_taken):
    moved = AFFINE.copy()
    moved[0, 3] += shift_mm
    save(scan.mask, TRUE, moved)
    if is_taken:
        np.testing.assert_array_equal(read_scan(scan).mask, TRUE.T)
    else:
        with pytest.raises(DataError, match=r"a_gt.nii.gz must lie where its image .*a.nii.gz"):
            read_scan(scan)


def rotated():
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    return turn @ AFFINE


# another place, size, direction
@pytest.mark.parametrize("affine", [np.eye(4), np.diag([1.5, 1.25, 8, 1]), rotated()])
def test_what_no_exchange_of_axes_explains_is_refused(scan, affine):
    save(scan.mask, TRUE, affine)
    with pytest.raises(DataError, match=r"to 0.1 voxel, got") as error:
        read_scan(scan)
    assert str(scan.image) in str(error.value)
    assert str(scan.mask) in str(error.value)
    np.testing.assert_array_equal(read_labels(scan.mask, 4), TRUE.T)  # alone it is what it is


def test_mirrored_metaimage_header(tmp_path):
    lines = "NDims = 3\nDimSize = 4 3 2\nElementSpacing = 1.5 1.25 8\nElementType = MET_UCHAR\n"
    for name, array, extra in (
        ("a", TRUE, "Offset = 10 20 30\n"),
        ("b", TRUE[:, ::-1], "Offset = 10 22.5 30\nTransformMatrix = 1 0 0 0 -1 0 0 0 1\n"),
    ):
        (tmp_path / f"{name}.raw").write_bytes(array.tobytes(order="F"))
        text = f"{lines}{extra}ElementDataFile = {name}.raw\n"
        (tmp_path / f"{name}.mhd").write_text(text)
    volume = read_scan(Scan("a", "a", None, tmp_path / "a.mhd", tmp_path / "b.mhd"))
    np.testing.assert_array_equal(volume.mask, TRUE.T)


def without_forms(path):
    patch(path, 252, "<2h", 0, 0)


def test_files_without_a_place(scan):
    without_forms(scan.image)
    with pytest.raises(DataError, match=r"a_gt.nii.gz must lie where"):
        read_scan(scan)
    without_forms(scan.mask)  # both: the voxel size is all there is to compare
    volume = read_scan(scan)
    np.testing.assert_array_equal(volume.mask, TRUE.T)
    assert volume.spacing_mm == (8.0, 1.25, 1.5)
    patch(scan.mask, 80, "<3f", 1.5, 1.25, 5)
    with pytest.raises(DataError, match=r"got no place and voxels of .1.5, 1.25, 5. mm"):
        read_scan(scan)


# a coded sform that is none; two axes of one direction
@pytest.mark.parametrize(
    "rows", [[0.0] * 12, [np.nan] * 12, [1.5, 0, 0, 0, 1.5, 0, 0, 0, 0, 0, 8, 0]]
)
def test_unusable_sform(scan, rows):
    patch(scan.image, 280, "<12f", *rows)
    with pytest.raises(DataError, match=r"a.nii.gz must have a finite affine with an inverse"):
        read_image(scan.image)
    image = nibabel.Nifti1Image(np.zeros(TRUE.shape, np.int16), AFFINE)
    image.set_qform(AFFINE, 1)
    nibabel.save(image, scan.image)
    patch(scan.image, 280, "<12f", *rows)
    volume = read_scan(scan)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    (note,) = volume.geometry.notes
    assert "its qform is used" in note


@pytest.mark.parametrize("bad", [0.0, -1.5, np.nan, np.inf])
def test_voxel_size_that_is_none(scan, bad):
    patch(scan.image, 80, "<f", bad)
    with pytest.raises(DataError, match=r"a.nii.gz must have a positive voxel size, got"):
        read_image(scan.image)


def test_voxel_size_that_contradicts_the_affine(scan):
    patch(scan.image, 80, "<3f", 1, 1, 1)
    volume = read_scan(scan)
    assert volume.spacing_mm == (8.0, 1.25, 1.5)
    (note,) = volume.geometry.notes
    assert "(1.5, 1.25, 8) mm (used), got (1, 1, 1) mm" in note


# name of the unit, its code, and 1.5 mm in it
@pytest.mark.parametrize(
    ("unit", "mm"), [("meter", 1000.0), ("mm", 1.0), ("micron", 0.001), ("unknown", 1.0)]
)
def test_units(scan, tmp_path, unit, mm):
    nifti = nibabel.Nifti1Image(TRUE, np.diag([1 / mm, 1 / mm, 1 / mm, 1]) @ AFFINE)
    nifti.header.set_xyzt_units(unit)
    nibabel.save(nifti, scan.image)
    volume = read_scan(scan)  # the mask is in millimetres
    np.testing.assert_allclose(volume.spacing_mm, (8.0, 1.25, 1.5), rtol=1e-6)
    np.testing.assert_allclose(volume.affine, AFFINE, rtol=1e-6)
    assert volume.geometry.notes == ()
    write_labels(tmp_path / "p.nii.gz", volume.mask, volume.affine)
    np.testing.assert_allclose(nibabel.load(tmp_path / "p.nii.gz").affine, AFFINE, rtol=1e-6)


def test_millimetres_called_metres_are_noted(scan):
    for path in (scan.image, scan.mask):
        patch(path, 123, "<b", 1)
    (note,) = read_scan(scan).geometry.notes
    assert "at most 100 mm, got (1500, 1250, 8000) mm: check the unit" in note


def test_metres_without_a_unit_are_noted(scan):
    for path in (scan.image, scan.mask):
        patch(path, 123, "<b", 0)
        patch(path, 280, "<12f", *(AFFINE[:3] / 1000).ravel())
        patch(path, 80, "<3f", 0.0015, 0.00125, 0.008)
    assert any(
        "at least 0.02 mm, got (0.0015, 0.00125, 0.008) mm: check the unit" in note
        for note in read_scan(scan).geometry.notes
    )


def test_trailing_axes_of_length_one(scan):
    values = np.asarray(nibabel.load(scan.image).dataobj)
    for axes in ((..., None), (..., None, None)):
        save(scan.image, values[axes])
        save(scan.mask, TRUE[axes])
        for frame in (None, 0):
            volume = read_scan(replace(scan, frame=frame))
            np.testing.assert_array_equal(volume.image, values.T)
            np.testing.assert_array_equal(volume.mask, TRUE.T)
    cine = np.stack([values, values + 1], 3)
    save(scan.image, cine[..., None])  # (x, y, z, frame, 1)
    volume = read_scan(replace(scan, frame=1))
    np.testing.assert_array_equal(volume.image, values.T + 1)


def test_metaimage_of_four_axes(tmp_path):
    array = np.arange(24, dtype="<i2").reshape(TRUE.shape)
    (tmp_path / "a.raw").write_bytes(array.tobytes(order="F"))
    (tmp_path / "a.mhd").write_text(
        "NDims = 4\nDimSize = 4 3 2 1\nElementSpacing = 1.5 1.25 8 1\nOffset = 1 2 3 4\n"
        "TransformMatrix = 0 1 0 0 1 0 0 0 0 0 1 0 0 0 0 1\n"
        "ElementType = MET_SHORT\nElementDataFile = a.raw\n"
    )
    image, spacing_mm, affine = read_image(tmp_path / "a.mhd")
    np.testing.assert_array_equal(image, array.T)
    assert spacing_mm == (8.0, 1.25, 1.5)
    # x runs along the patient's y and y along x, both negated from LPS to RAS
    expected = [[0, -1.25, 0, -1], [-1.5, 0, 0, -2], [0, 0, 8, 3], [0, 0, 0, 1]]
    np.testing.assert_array_equal(affine, expected)


def test_inspect_names_what_disagrees(tmp_path):
    folder = tmp_path / "patient001"
    folder.mkdir()
    (folder / "Info.cfg").write_text("ED: 1\nES: 9\n")
    for frame in ("01", "09"):
        save(folder / f"patient001_frame{frame}.nii.gz", TRUE.astype(np.int16))
        save(folder / f"patient001_frame{frame}_gt.nii.gz", TRUE)
    assert inspect(tmp_path).problems == []
    save(folder / "patient001_frame01_gt.nii.gz", TRUE, np.eye(4))
    patch(folder / "patient001_frame09.nii.gz", 80, "<f", 9)
    report = inspect(tmp_path)
    assert report.scans == 1
    first, second = report.problems
    assert "patient001_frame01_gt.nii.gz must lie where its image" in first
    assert "patient001_frame09.nii.gz must have the voxel size of its affine" in second


def test_directions_of_a_metaimage_that_are_none(tmp_path):
    (tmp_path / "a.raw").write_bytes(TRUE.tobytes(order="F"))

    def write(matrix):
        (tmp_path / "a.mhd").write_text(
            f"NDims = 3\nDimSize = 4 3 2\nElementSpacing = 1.5 1.25 8\nTransformMatrix = {matrix}\n"
            "ElementType = MET_UCHAR\nElementDataFile = a.raw\n"
        )

    for matrix in ("0 0 0 0 0 0 0 0 0", "1 0 0 1 0 0 0 0 1"):
        write(matrix)
        with pytest.raises(DataError, match=r"a\.mhd must have a finite affine with an inverse"):
            read_image(tmp_path / "a.mhd")
    write("2 0 0 0 1 0 0 0 1")
    volume = read_scan(Scan("a", "a", None, tmp_path / "a.mhd", tmp_path / "a.mhd"))
    assert volume.spacing_mm == (8.0, 1.25, 3.0)
    assert "(3, 1.25, 8) mm (used), got (1.5, 1.25, 8) mm" in volume.geometry.notes[0]


def test_axes_that_are_not_at_right_angles_are_noted(scan):
    skewed = AFFINE.copy()
    skewed[0, 1] = 0.2
    for path, array in ((scan.image, TRUE.astype(np.int16)), (scan.mask, TRUE)):
        save(path, array, skewed)
    (note,) = read_scan(scan).geometry.notes
    assert (
        note == f"{scan.image} must have axes at right angles, got others: its slices are skewed."
    )


@pytest.mark.parametrize(("code", "is_noted"), [(1, True), (2, True), (4, False)])
def test_sform_and_qform_that_disagree(scan, code, is_noted):
    moved = AFFINE.copy()
    moved[0, 3] += 3
    image = nibabel.Nifti1Image(TRUE.astype(np.int16), AFFINE)
    image.set_qform(moved, 1)
    image.set_sform(AFFINE, code)
    nibabel.save(image, scan.image)
    notes = read_scan(scan).geometry.notes
    assert (
        any("must have a sform and a qform that agree; its sform is used" in n for n in notes)
        == is_noted
    )
    np.testing.assert_allclose(read_scan(scan).affine, AFFINE, rtol=1e-6)
