"""Slices as tensors: what load_slices computes, its cache under damage and change, selection."""

import os
import time
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch

from spcl_fast.segmentation.data import slices as slices_module
from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.find import find_data
from spcl_fast.segmentation.data.grid import Grid
from spcl_fast.segmentation.data.metaimage import write_metaimage
from spcl_fast.segmentation.data.scan import Scan
from spcl_fast.segmentation.data.slices import load_slices

GRID = Grid(16, 3.0)
DEPTHS = (3, 4, 5, 6)


def write_scan(folder, name, patient, phase, num_slices, seed, **meta):
    rng = np.random.default_rng(seed)
    paths = folder / f"{name}.nii.gz", folder / f"{name}_gt.nii.gz"
    for path, array in zip(
        paths,
        (
            rng.integers(0, 900, (30, 26, num_slices)).astype(np.int16),
            rng.integers(0, 4, (30, 26, num_slices)).astype(np.uint8),
        ),
        strict=True,
    ):
        nibabel.save(nibabel.Nifti1Image(array, np.diag([1.5, 1.5, 8.0, 1.0])), path)
    return Scan(name, patient, phase, *paths, meta)


@pytest.fixture
def scans(tmp_path):
    return [
        write_scan(tmp_path, "a_frame01", "a", "ED", 3, 0, group="NOR", vendor="B"),
        write_scan(tmp_path, "a_frame09", "a", "ES", 4, 1, group="NOR"),
        write_scan(tmp_path, "b_frame01", "b", "ED", 5, 2, group="DCM", vendor="A"),
        write_scan(tmp_path, "b_frame08", "b", "ES", 6, 3, group="DCM", vendor=""),
    ]


def equal(a, b):
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("images", "masks", "scan", "slice_index", "num_slices")
    )


def test_content(scans):
    slices = load_slices(scans, GRID, None)
    assert len(slices) == sum(DEPTHS)
    assert slices.images.shape == (18, 1, 16, 16)
    assert slices.images.dtype == torch.float32
    assert 0 <= slices.images.min() < slices.images.max() <= 1
    assert slices.masks.shape == (18, 16, 16)
    assert slices.masks.dtype == torch.uint8
    assert slices.scan.tolist() == [i for i, n in enumerate(DEPTHS) for _ in range(n)]
    assert slices.slice_index.tolist() == [k for n in DEPTHS for k in range(n)]
    assert slices.num_slices.tolist() == [n for n in DEPTHS for _ in range(n)]
    assert slices.position[:3].tolist() == pytest.approx([1 / 6, 3 / 6, 5 / 6])
    assert slices.position.dtype == torch.float32


def test_meta_codes(scans):
    slices = load_slices(scans, GRID, None)
    first = [slices.slice_index.eq(0).nonzero().flatten()[i] for i in range(4)]
    codes = {name: codes[torch.stack(first)].tolist() for name, codes in slices.meta.items()}
    assert codes == {
        "patient": [0, 0, 1, 1],
        "phase": [0, 1, 0, 1],
        "group": [1, 1, 0, 0],
        "vendor": [1, -1, 0, -1],  # absent and empty are unknown
    }
    assert slices.categories == {
        "patient": ["a", "b"],
        "phase": ["ED", "ES"],
        "group": ["DCM", "NOR"],
        "vendor": ["A", "B"],
    }
    assert all(codes.dtype == torch.int64 for codes in slices.meta.values())


def test_values_of_single_slices(scans):
    first, *others = scans
    marked = replace(first, meta={"contrast": "low"}, slice_meta={"contrast": {1: "high"}})
    slices = load_slices([marked, *others], GRID)
    length = int(slices.num_slices[0])
    codes = slices.meta["contrast"][slices.scan == 0].tolist()
    assert [slices.categories["contrast"][code] for code in codes] == [
        "high" if k == 1 else "low" for k in range(length)
    ]
    assert (slices.meta["contrast"][slices.scan > 0] == -1).all()
    late = replace(first, slice_meta={"contrast": {length: "high"}})
    with pytest.raises(DataError, match=rf"must be numbered 0 to {length - 1}, got contrast of"):
        load_slices([late], GRID)


def test_cache_gives_the_same_and_is_used(scans, tmp_path, monkeypatch):
    cache = tmp_path / "deep" / "cache"
    plain = load_slices(scans, GRID, None)
    assert equal(load_slices(scans, GRID, cache), plain)
    assert len(list(cache.iterdir())) == 4
    monkeypatch.setattr(slices_module, "read_scan", lambda scan: pytest.fail("read again"))
    assert equal(load_slices(scans, GRID, cache), plain)


# ways an entry goes bad: empty, cut, overwritten, of another grid, of another type
@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "shape", "dtype", "key", "bit"])
def test_damaged_entry_is_rebuilt(scans, tmp_path, damage):
    cache = tmp_path / "cache"
    plain = load_slices(scans, GRID, cache)
    entry = sorted(cache.iterdir())[0]
    data = entry.read_bytes()
    image, mask = np.zeros((3, 16, 16), np.float32), np.zeros((3, 16, 16), np.uint8)
    if damage == "empty":
        entry.write_bytes(b"")
    elif damage == "cut":
        entry.write_bytes(data[: len(data) // 2])
    elif damage == "noise":
        entry.write_bytes(b"x" * len(data))
    elif damage == "shape":
        np.savez(entry, image=image[:, :8], mask=mask[:, :8])
    elif damage == "dtype":
        np.savez(entry, image=image.astype(np.float64), mask=mask)
    elif damage == "key":
        np.savez(entry, image=image)
    else:
        middle = len(data) // 3
        entry.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    assert equal(load_slices(scans, GRID, cache), plain)
    with np.load(entry) as arrays:
        assert arrays["image"].shape == (3, 16, 16)
        assert arrays["image"].any()


def test_changed_file_or_grid_is_read_again(scans, tmp_path):
    cache = tmp_path / "cache"
    load_slices(scans, GRID, cache)
    assert load_slices(scans, Grid(16, 2.0), cache).images.shape[-1] == 16
    assert len(list(cache.iterdir())) == 8
    write_scan(tmp_path, "a_frame01", "a", "ED", 3, seed=99)
    changed = load_slices(scans, GRID, cache)
    assert equal(changed, load_slices(scans, GRID, None))
    status = scans[0].mask.stat()
    os.utime(scans[0].mask, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    load_slices(scans, GRID, cache)
    assert len(list(cache.iterdir())) == 10


# what else decides how a file is read; each has its own entry
@pytest.mark.parametrize(
    "change",
    [
        {"stack_axis": 1},
        {"classes": {0: 0, 1: 1, 2: 1, 3: 1}},
        {"class_names": ("background", "a", "b", "c", "d")},
    ],
)
def test_another_way_of_reading_is_another_entry(scans, tmp_path, change):
    cache = tmp_path / "cache"
    first = load_slices(scans[:1], GRID, cache)
    other = [replace(scans[0], **change)]
    changed = load_slices(other, GRID, cache)
    assert len(list(cache.iterdir())) == 2
    assert equal(changed, load_slices(other, GRID, None))
    assert equal(load_slices(scans[:1], GRID, cache), first)


def test_frames_of_one_file_are_entries_of_their_own(scans, tmp_path):
    images = np.random.default_rng(5).normal(size=(30, 26, 3, 2)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(images, np.diag([1.5, 1.5, 8.0, 1.0])), scans[0].image)
    frames = [replace(scans[0], name="a", frame=k) for k in (0, 1)]
    loaded = [load_slices([scan], GRID, tmp_path / "cache").images for scan in frames]
    assert not torch.equal(*loaded)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_changed_voxels_of_a_metaimage_are_read_again(scans, tmp_path):
    path = tmp_path / "a.mhd"
    write_metaimage(path, np.zeros((3, 26, 30), np.int16), (8.0, 1.5, 1.5))
    write_metaimage(tmp_path / "a_gt.mhd", np.zeros((3, 26, 30), np.uint8), (8.0, 1.5, 1.5))
    scan = replace(scans[0], image=path, mask=tmp_path / "a_gt.mhd")
    assert not load_slices([scan], GRID, tmp_path / "cache").images.any()
    voxels = np.arange(3 * 26 * 30, dtype=np.int16)
    path.with_suffix(".raw").write_bytes(voxels.tobytes())  # the header stays as it is
    status = path.with_suffix(".raw").stat()
    os.utime(path.with_suffix(".raw"), ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    assert load_slices([scan], GRID, tmp_path / "cache").images.any()


def test_unknown_phase_is_no_phase(scans):
    slices = load_slices([replace(scans[0], phase=None), scans[1]], GRID, None)
    assert slices.meta["phase"].tolist() == [-1] * 3 + [1] * 4
    assert slices.categories["phase"] == ["ED", "ES"]


def test_failed_write_leaves_nothing(scans, tmp_path, monkeypatch):
    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(DataError, match=r"writable cache folder: .* disk full"):
        load_slices(scans, GRID, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_cache_dir_that_is_a_file(scans, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(DataError, match="writable cache folder"):
        load_slices(scans, GRID, tmp_path / "cache")


def test_errors(scans, tmp_path):
    with pytest.raises(ValueError, match="one or more scans"):
        load_slices([], GRID, None)
    with pytest.raises(ValueError, match="distinct names"):
        load_slices([scans[0], scans[0]], GRID, None)
    scans[1].mask.unlink()
    with pytest.raises(DataError, match="a_frame09_gt"):
        load_slices(scans, GRID, tmp_path / "cache")
    with pytest.raises(DataError, match="a_frame09_gt"):
        load_slices(scans, GRID, None)


def test_select(scans):
    slices = load_slices(scans, GRID, None)
    part = slices.select([2, 0])
    assert [scan.name for scan in part.scans] == ["b_frame01", "a_frame01"]
    assert part.scan.tolist() == [0] * 5 + [1] * 3
    assert torch.equal(part.images[:5], slices.images[7:12])
    assert torch.equal(part.masks[5:], slices.masks[:3])
    assert part.meta["patient"].tolist() == [1] * 5 + [0] * 3
    assert part.categories == slices.categories
    assert len(slices.select([])) == 0
    for bad in ([0, 0], [4], [-1]):
        with pytest.raises(ValueError, match=r"scan_indices must be distinct numbers in 0\.\.3"):
            slices.select(bad)


def test_to_moves_every_tensor(scans):
    moved = load_slices(scans, GRID, None).to("meta")
    tensors = [moved.images, moved.masks, moved.scan, moved.slice_index, moved.num_slices]
    assert all(t.device.type == "meta" for t in [*tensors, *moved.meta.values()])


def test_real_acdc_is_fast(tmp_path, real_data):
    scans = find_data(real_data / "acdc").scans[:40]
    start = time.process_time()
    slices = load_slices(scans, Grid(), tmp_path)
    first = time.process_time() - start
    start = time.process_time()
    again = load_slices(scans, Grid(), tmp_path)
    assert time.process_time() - start < first  # the cache is worth having
    assert first < 20
    assert equal(slices, again)
    assert slices.masks.unique().tolist() == [0, 1, 2, 3]
    # per scan: class share within the crop is the share in the volume up to nearest sampling
    assert 0.02 < float((slices.masks > 0).float().mean()) < 0.25
