"""HDF5 volumes, and the files that an image consists of."""

import builtins
import gzip

import nibabel
import numpy as np
import pytest

from spcl_fast.segmentation.data import image_file
from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.image_file import load
from spcl_fast.segmentation.data.metaimage import write_metaimage
from spcl_fast.segmentation.data.scan import Scan
from spcl_fast.segmentation.data.volume import read_image, read_scan


@pytest.fixture
def volume_h5(tmp_path):
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = rng.normal(size=(4, 6, 5))
        file["label"] = rng.integers(0, 4, (4, 6, 5)).astype(np.uint8)
        file["text"] = "no array"
    return tmp_path / "a.h5"


def test_hdf5(volume_h5):
    import h5py

    volume = read_scan(Scan("a", "a", None, volume_h5, volume_h5))
    with h5py.File(volume_h5) as file:
        np.testing.assert_array_equal(volume.image, file["image"][()].astype(np.float32))
        np.testing.assert_array_equal(volume.mask, file["label"])
    assert volume.spacing_mm == (10.0, 1.5, 1.5)
    np.testing.assert_array_equal(np.diag(volume.affine), (1.5, 1.5, 10.0, 1.0))


def test_hdf5_errors(volume_h5, monkeypatch):
    with pytest.raises(DataError, match=r"array 'scribble', got \['image', 'label', 'text'\]"):
        read_image(volume_h5, dataset="scribble")
    with pytest.raises(DataError, match="must hold 'text' as a 3-D volume"):
        read_image(volume_h5, dataset="text")
    content = volume_h5.read_bytes()
    for length in (0, 100, len(content) // 2):
        volume_h5.write_bytes(content[:length])
        with pytest.raises(DataError, match="must be a complete HDF5 file"):
            read_image(volume_h5)

    def without_h5py(name, *arguments):
        if name == "h5py":
            raise ImportError(name)
        return load(name, *arguments)

    load = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without_h5py)
    with pytest.raises(DataError, match=r"needs h5py to be read: pip install h5py\.$"):
        read_image(volume_h5)


def test_files_of(tmp_path):
    write_metaimage(tmp_path / "a.mhd", np.zeros((2, 3, 4), np.int16), (1, 1, 1))
    assert image_file.files_of(tmp_path / "a.mhd") == [tmp_path / "a.mhd", tmp_path / "a.raw"]
    assert image_file.files_of(tmp_path / "a.nii.gz") == [tmp_path / "a.nii.gz"]


@pytest.mark.parametrize("end", [-4, -8])  # without the length, and without the checksum too
def test_compressed_file_whose_end_is_lost(tmp_path, end):
    path = tmp_path / "a.nii.gz"
    noise = np.random.default_rng(0).integers(0, 9, (96, 96, 11)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(noise, np.eye(4)), path)
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(DataError, match=r"a\.nii\.gz must be a complete NIfTI file"):
        load(path)


def test_compressed_file_that_was_damaged(tmp_path):
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4)), path)
    content = gzip.compress(gzip.decompress(path.read_bytes()), 0)  # stored as it is
    path.write_bytes(content[:-40] + b"\1" + content[-39:])
    with pytest.raises(DataError, match=r"must be a complete NIfTI file, got: CRC check failed"):
        load(path)


def test_metaimage_without_a_voxel_size(tmp_path):
    write_metaimage(tmp_path / "a.mhd", np.zeros((3, 4, 5), np.int16), (2, 1, 1))
    header = (tmp_path / "a.mhd").read_text()
    assert load(tmp_path / "a.mhd")[1].notes == ()
    (tmp_path / "a.mhd").write_text(header.replace("ElementSpacing", "Elementspacing"))
    (note,) = load(tmp_path / "a.mhd")[1].notes
    assert note.endswith("a.mhd must have ElementSpacing, got none: 1 mm is used.")
