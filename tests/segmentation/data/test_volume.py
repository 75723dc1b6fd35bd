"""Reading volumes by frame, axis and set of classes; one clear sentence per bad input.

Real volumes are read where ../shared/data exists and skipped elsewhere.
"""

import tracemalloc
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.find import find_data
from spcl_fast.segmentation.data.metaimage import write_metaimage
from spcl_fast.segmentation.data.scan import OTHER_VALUES, Scan
from spcl_fast.segmentation.data.volume import read_image, read_labels, read_scan, write_labels

AFFINE = np.diag([1.5, 1.25, 8.0, 1.0])
SHAPE = (9, 7, 5)  # x, y, z


def save(path, array, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


@pytest.fixture
def scan(tmp_path):
    rng = np.random.default_rng(0)
    save(tmp_path / "a.nii.gz", rng.integers(0, 255, SHAPE).astype(np.int16))
    save(tmp_path / "a_gt.nii.gz", rng.integers(0, 4, SHAPE).astype(np.uint8))
    return Scan("a", "a", "ED", tmp_path / "a.nii.gz", tmp_path / "a_gt.nii.gz")


def test_array_is_transposed(tmp_path):
    array = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)  # (x, y, z)
    save(tmp_path / "a.nii.gz", array)
    image, spacing_mm, affine = read_image(tmp_path / "a.nii.gz")
    assert image.shape == (4, 3, 2)
    assert image[3, 2, 1] == array[1, 2, 3]
    assert image.dtype == np.float32
    assert spacing_mm == (8.0, 1.25, 1.5)
    np.testing.assert_array_equal(affine, AFFINE)


# each voxel axis as the stack; the others follow from z to x
@pytest.mark.parametrize(("axis", "order"), [(0, (0, 2, 1)), (1, (1, 2, 0)), (2, (2, 1, 0))])
def test_stack_axis(scan, tmp_path, axis, order):
    volume = read_scan(replace(scan, stack_axis=axis))
    array = np.asarray(nibabel.load(scan.image).dataobj)
    np.testing.assert_array_equal(volume.image, array.transpose(order))
    np.testing.assert_array_equal(
        volume.mask, np.asarray(nibabel.load(scan.mask).dataobj).transpose(order)
    )
    assert volume.spacing_mm == tuple((1.5, 1.25, 8.0)[k] for k in order)
    write_labels(tmp_path / "out.nii.gz", volume.mask, volume.affine, stack_axis=axis)
    written, truth = nibabel.load(tmp_path / "out.nii.gz"), nibabel.load(scan.mask)
    np.testing.assert_array_equal(written.dataobj, truth.dataobj)
    np.testing.assert_array_equal(written.affine, truth.affine)


def test_frame_of_image_and_mask(scan):
    rng = np.random.default_rng(1)
    images, masks = rng.normal(size=(*SHAPE, 3)), rng.integers(0, 4, (*SHAPE, 3))
    save(scan.image, images.astype(np.float32))
    volume = read_scan(replace(scan, frame=1))  # the mask is 3-D
    np.testing.assert_array_equal(volume.image, images[..., 1].T.astype(np.float32))
    assert volume.mask.max() == 3
    save(scan.mask, masks.astype(np.uint8))
    volume = read_scan(replace(scan, frame=2))
    np.testing.assert_array_equal(volume.mask, masks[..., 2].T)
    assert volume.spacing_mm == (8.0, 1.25, 1.5)
    with pytest.raises(DataError, match=r"frame 3 \(from 0\), got 3 frames"):
        read_scan(replace(scan, frame=3))
    with pytest.raises(DataError, match="must hold a 3-D volume"):
        read_scan(scan)


def test_frame_of_a_file_without_frames(scan, tmp_path):
    with pytest.raises(DataError, match=r"must hold 4-D frames, got shape \(9, 7, 5\)"):
        read_scan(replace(scan, frame=0))
    write_metaimage(tmp_path / "a.mhd", np.zeros((2, 3, 4), np.int16), (1, 1, 1))
    with pytest.raises(DataError, match=r"must be a 4-D NIfTI file to have frame 0"):
        read_image(tmp_path / "a.mhd", frame=0)


# compressed and not, as the two are sliced differently
@pytest.mark.parametrize("name", ["cine.nii", "cine.nii.gz"])
def test_one_frame_is_read_without_the_others(tmp_path, name):
    num_frames, frame_bytes = 40, 64 * 64 * 8 * 2
    save(tmp_path / name, np.ones((64, 64, 8, num_frames), np.int16))
    first, _, _ = read_image(tmp_path / name, frame=0)  # imports nibabel
    assert first.flags.writeable
    tracemalloc.start()
    read_image(tmp_path / name, frame=num_frames - 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.5 * num_frames * frame_bytes


def test_classes_are_mapped(scan):
    values = np.zeros(SHAPE, np.int16)
    values[0], values[1], values[2] = 500, 205, 421
    save(scan.mask, values)
    names = ("background", "MYO", "LV")
    known = replace(scan, classes={0: 0, 205: 1, 500: 2}, class_names=names)
    with pytest.raises(DataError, match="labels in 0, 205, 500, got 421"):
        read_scan(known)
    mask = read_scan(replace(known, classes={**known.classes, OTHER_VALUES: 0})).mask
    assert mask.dtype == np.uint8
    expected = np.zeros(SHAPE[::-1], np.uint8)
    expected[..., 0], expected[..., 1] = 2, 1
    np.testing.assert_array_equal(mask, expected)
    values[2] = -421
    save(scan.mask, values)
    with pytest.raises(DataError, match="got -421"):
        read_scan(replace(known, classes={**known.classes, OTHER_VALUES: 0}))


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def flat(value, dtype=np.float32):
    return np.full(SHAPE, value, dtype)


# the ways in which a volume goes bad: bytes lost here and there, other formats, values, labels
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: cut(s.image, 0.0), "must be a complete NIfTI file"),
        (lambda s: cut(s.image, 0.1), "must be a complete NIfTI file"),
        (lambda s: cut(s.image, 0.5), "must be a complete NIfTI file"),
        (lambda s: cut(s.image, 0.9), "must be a complete NIfTI file"),
        (lambda s: cut(s.mask, 0.9), "_gt.nii.gz must be a complete NIfTI file"),
        (lambda s: s.image.write_bytes(b"not an image " * 99), "must be a complete NIfTI file"),
        (lambda s: save(s.image, flat(np.nan)), "finite values, got 315 NaN"),
        (lambda s: save(s.image, flat(np.inf)), "finite values"),
        (lambda s: save(s.image, flat(1e300, np.float64)), "finite values"),
        (lambda s: save(s.mask, flat(np.nan)), "_gt.nii.gz must hold finite values"),
        (lambda s: save(s.image, np.stack([flat(1)] * 2, 3)), "must hold a 3-D volume"),
        (lambda s: save(s.image, flat(1)[0]), "must hold a 3-D volume"),
        (lambda s: save(s.image, flat(1j, np.complex64)), "must hold real numbers"),
        (
            lambda s: save(s.image, flat(1)[1:]),
            r"shape of its image, \(8, 7, 5\), got \(9, 7, 5\)",
        ),
        (lambda s: save(s.mask, flat(4, np.uint8)), r"labels in 0\.\.3, got 4"),
        (lambda s: save(s.mask, flat(-1)), r"labels in 0\.\.3, got -1"),
        (lambda s: save(s.mask, flat(1.5)), r"labels in 0\.\.3, got 1\.5"),
    ],
)
def test_content_errors(scan, spoil, message):
    spoil(scan)
    with pytest.raises(DataError, match=message) as error:
        read_scan(scan)
    assert str(scan.image.parent / "a") in str(error.value)
    assert "\n" not in str(error.value)


def test_voxel_size_must_be_positive(tmp_path):
    nifti = nibabel.Nifti1Image(flat(1), AFFINE)
    nifti.header["pixdim"][3] = np.inf  # nibabel itself replaces 0 by 1, with a warning
    nibabel.save(nifti, tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match="positive voxel size"):
        read_image(tmp_path / "a.nii.gz")


# one flipped byte goes unnoticed or is a DataError, nothing else; the header of a plain file, and
# all of a compressed one (broken streams and checksums)
@pytest.mark.parametrize(("name", "num_bytes"), [("a.nii", 352), ("a.nii.gz", None)])
def test_damaged_bytes(tmp_path, name, num_bytes):
    path = tmp_path / name
    save(path, np.arange(120, dtype=np.int16).reshape(4, 5, 6))
    good = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for position in range(num_bytes or len(good)):
        bad = bytearray(good)
        bad[position] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(bad))
        try:
            read_image(path)
        except DataError:
            refused += 1
    assert refused > 10


def test_missing_image_or_other_format(tmp_path):
    with pytest.raises(DataError, match=r"must be an existing \.nii"):
        read_image(tmp_path / "a.nii.gz")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"must be an existing \.nii"):
        read_image(tmp_path / "a.png")


# float32 noise of a scale factor or a resampling, and what is none
@pytest.mark.parametrize("change", [-1, 1])
def test_labels_a_hair_away_from_whole_numbers(scan, change):
    whole = np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.float32)
    save(scan.mask, np.nextafter(whole, np.float32(change * 9)))  # 0.99999994, 2.0000002, ...
    np.testing.assert_array_equal(read_labels(scan.mask, 4), whole.T)
    save(scan.mask, whole + np.float32(change * 9e-4))
    np.testing.assert_array_equal(read_labels(scan.mask, 4), whole.T)
    save(scan.mask, np.where(whole == 2, whole + np.float32(change * 2e-3), whole))
    shown = "2.002" if change > 0 else "1.998"
    with pytest.raises(DataError, match=rf"labels in 0\.\.3, got {shown}\.$"):
        read_labels(scan.mask, 4)
    save(scan.mask, flat(np.nextafter(np.float32(4), np.float32(0))))
    with pytest.raises(DataError, match=r"labels in 0\.\.3, got 3\.9999998\.$"):
        read_labels(scan.mask, 4)


def test_number_of_classes(scan):
    assert read_scan(scan).mask.max() == 3
    with pytest.raises(DataError, match=r"labels in 0\.\.1, got 2, 3"):
        read_scan(replace(scan, class_names=("background", "heart")))
    with pytest.raises(DataError, match=r"labels in 0\.\.1, got 2, 3"):
        read_labels(scan.mask, 2)


# both extensions
@pytest.mark.parametrize("name", ["labels.nii", "labels.nii.gz"])
def test_write_labels_round_trip(tmp_path, name):
    labels = np.random.default_rng(0).integers(0, 4, (5, 7, 9)).astype(np.uint8)
    affine = np.array([[0, -1.5, 0, 3], [1.25, 0, 0, -4], [0, 0, 8, 5], [0, 0, 0, 1.0]])
    path = tmp_path / name
    path.write_bytes(b"previous")
    with path.open("rb") as reader:
        write_labels(path, labels, affine)
        assert reader.read() == b"previous"  # replaced, not overwritten
    back, spacing_mm, back_affine = read_image(path)
    np.testing.assert_array_equal(back, labels)
    np.testing.assert_array_equal(back_affine, affine)
    assert spacing_mm == (8.0, 1.5, 1.25)
    assert nibabel.load(path).get_data_dtype() == np.uint8
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_interrupted_write_keeps_the_previous_file(tmp_path, monkeypatch):
    def fail(image, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    path = tmp_path / "labels.nii.gz"
    path.write_bytes(b"previous")
    monkeypatch.setattr(nibabel, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_labels(path, np.zeros((2, 3, 4), np.uint8), AFFINE)
    assert path.read_bytes() == b"previous"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_write_labels_refuses(tmp_path):
    with pytest.raises(ValueError, match="labels must be 3-D uint8"):
        write_labels(tmp_path / "a.nii.gz", np.zeros((2, 3), np.uint8), AFFINE)
    with pytest.raises(ValueError, match="labels must be 3-D uint8"):
        write_labels(tmp_path / "a.nii.gz", np.zeros((2, 3, 4), np.int64), AFFINE)
    with pytest.raises(ValueError, match=r"path must end in \.nii"):
        write_labels(tmp_path / "a.png", np.zeros((2, 3, 4), np.uint8), AFFINE)


def test_real_sunnybrook(tmp_path, real_data):
    scans = find_data(real_data / "sunnybrook5").scans
    assert len(scans) == 10
    for scan in scans:
        volume = read_scan(scan)
        assert volume.image.shape[1:] == (256, 256)
        assert volume.mask.max() == 3
        write_labels(tmp_path / "labels.nii.gz", volume.mask, volume.affine)
        back, _, affine = read_image(tmp_path / "labels.nii.gz")
        np.testing.assert_array_equal(back, volume.mask)
        # headers store affines in float32
        np.testing.assert_array_equal(affine, volume.affine)
