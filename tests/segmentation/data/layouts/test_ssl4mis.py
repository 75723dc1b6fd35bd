"""SSL4MIS's layout: phases by the order of frames, its lists, and reading HDF5 volumes."""

import numpy as np
import pytest

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.find import find_data
from spcl_fast.segmentation.data.layouts.ssl4mis import LAYOUT
from spcl_fast.segmentation.data.volume import read_scan

# true frame numbers, renumbered ones, and a patient with one frame
NAMES = ["patient001_frame01", "patient001_frame02", "patient090_frame04", "patient090_frame11"]
ODD = "patient077_frame01"


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data"
    (folder / "slices").mkdir(parents=True)
    (folder / "slices" / "patient001_frame01_slice_1.h5").touch()
    for name in [*NAMES, ODD]:
        (folder / f"{name}.h5").touch()
        (folder / f"._{name}.h5").touch()
    (tmp_path / "train.list").write_text(f"{NAMES[0]}\n{NAMES[1]}\n")
    (tmp_path / "test.list").write_text(f"{NAMES[2]}\n")
    (tmp_path / "train_slices.list").write_text(f"{NAMES[0]}_slice_1\n")
    return tmp_path


def test_scans(root):
    assert LAYOUT.recognises(root)
    scans = {scan.name: scan for scan in find_data(root, layout="ssl4mis").scans}
    assert sorted(scans) == sorted([*NAMES, ODD])
    assert [scans[name].phase for name in NAMES] == ["ED", "ES", "ED", "ES"]
    assert scans[ODD].phase is None
    assert scans[NAMES[3]].patient == "patient090"
    assert scans[NAMES[0]].image == scans[NAMES[0]].mask == root / "data" / f"{NAMES[0]}.h5"
    subsets = [scans[name].meta.get("subset") for name in [*NAMES, ODD]]
    assert subsets == ["train", "train", "test", None, None]


def test_the_folder_of_the_volumes_alone(root):
    assert LAYOUT.recognises(root / "data")
    assert len(find_data(root / "data", layout="ssl4mis").scans) == 5
    assert not LAYOUT.recognises(root / "data" / "nothing")


def test_a_listed_volume_must_exist(root):
    (root / "val.list").write_text("patient099_frame01\n")
    with pytest.raises(DataError, match=r"val.list must name volumes .*'patient099_frame01'"):
        find_data(root, layout="ssl4mis")
    assert sum(isinstance(case, DataError) for case in LAYOUT.find(root)) == 1


def test_reading(root):
    h5py = pytest.importorskip("h5py")
    with h5py.File(root / "data" / f"{NAMES[0]}.h5", "w") as file:
        file["image"] = np.arange(24.0).reshape(2, 3, 4)
        file["label"] = np.arange(24).reshape(2, 3, 4) % 4
        file["scribble"] = np.zeros((2, 3, 4))
    volume = read_scan(
        next(scan for scan in find_data(root, layout="ssl4mis").scans if scan.name == NAMES[0])
    )
    np.testing.assert_array_equal(volume.image, np.arange(24).reshape(2, 3, 4))
    np.testing.assert_array_equal(volume.mask, np.arange(24).reshape(2, 3, 4) % 4)
    assert volume.spacing_mm == (10.0, 1.5, 1.5)
