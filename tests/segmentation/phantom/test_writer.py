"""The phantom on disk: its files, interrupted and completed writes, folders that are refused."""

import dataclasses

import nibabel
import numpy as np
import pytest

from spcl_fast.segmentation.data.find import find_data
from spcl_fast.segmentation.data.volume import read_scan
from spcl_fast.segmentation.phantom import PhantomConfig, make_patient, write_phantom

RV, MYO, LV = 1, 2, 3
SMALL = PhantomConfig(num_patients=3, size=32, pixel_mm=6.0)


def test_files_hold_the_patient(tmp_path):
    calls = []
    root = write_phantom(SMALL, tmp_path / "set", progress=lambda *done: calls.append(done))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    patient = make_patient(SMALL, 1)
    folder = root / "training" / "patient002"
    frame = patient.frames["ES"]
    image = nibabel.load(folder / f"patient002_frame{frame:02d}.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj).T, patient.images["ES"])
    dz, dy, dx = patient.spacing_mm
    assert np.allclose(image.affine, np.diag([dx, dy, dz, 1]), atol=1e-5)
    labels = nibabel.load(folder / "patient002_frame01_gt.nii.gz")
    assert labels.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(labels.dataobj).T, patient.masks["ED"])
    info = dict(line.split(": ") for line in (folder / "Info.cfg").read_text().splitlines())
    assert list(info) == ["ED", "ES", "Group", "Height", "NbFrame", "Weight"]
    assert (info["ED"], info["ES"], info["Group"]) == ("1", str(frame), patient.group)
    assert len(list(folder.iterdir())) == 5


def test_find_data_reads_the_phantom(tmp_path):
    root = write_phantom(SMALL, tmp_path)
    scans = find_data(root, root / "metadata.csv").scans
    assert [scan.patient for scan in scans] == [f"patient00{k}" for k in (1, 1, 2, 2, 3, 3)]
    for k, scan in enumerate(scans):
        patient = make_patient(SMALL, k // 2)
        assert dict(scan.meta) == {"group": patient.group, "vendor": patient.vendor}
        volume = read_scan(scan)
        assert np.array_equal(volume.image, patient.images[scan.phase])
        assert np.array_equal(volume.mask, patient.masks[scan.phase])
        assert volume.spacing_mm == pytest.approx(patient.spacing_mm, rel=1e-5)


class StopWritingError(Exception):
    pass


def interrupt_after(num_patients):
    def progress(done, total):
        if done == num_patients:
            raise StopWritingError

    return progress


def test_interrupted_between_patients_then_completed(tmp_path):
    with pytest.raises(StopWritingError):
        write_phantom(SMALL, tmp_path, progress=interrupt_after(2))
    training = tmp_path / "training"
    assert sorted(path.name for path in training.iterdir()) == ["patient001", "patient002"]
    first = (training / "patient001" / "Info.cfg").stat().st_mtime_ns
    write_phantom(SMALL, tmp_path)
    assert len(find_data(tmp_path, tmp_path / "metadata.csv").scans) == 6
    assert (training / "patient001" / "Info.cfg").stat().st_mtime_ns == first


# In the first file of the second patient, in its last, and in a keyboard interrupt.
@pytest.mark.parametrize(("call", "error"), [(5, OSError), (8, OSError), (6, KeyboardInterrupt)])
def test_interrupted_within_a_patient(tmp_path, monkeypatch, call, error):
    save, calls = nibabel.save, []

    def failing(image, path):
        calls.append(path)
        if len(calls) == call:
            raise error
        save(image, path)

    monkeypatch.setattr(nibabel, "save", failing)
    with pytest.raises(error):
        write_phantom(SMALL, tmp_path)
    assert [path.name for path in (tmp_path / "training").iterdir()] == ["patient001"]
    assert len(find_data(tmp_path).scans) == 2


def test_leftovers_of_a_killed_process_go(tmp_path):
    with pytest.raises(StopWritingError):
        write_phantom(SMALL, tmp_path, progress=interrupt_after(1))
    leftover = tmp_path / "training" / ".unfinished-abc"
    leftover.mkdir()
    (leftover / "patient002_frame01.nii.gz").write_bytes(b"half")
    assert len(find_data(tmp_path).scans) == 2  # nor do they disturb reading
    write_phantom(SMALL, tmp_path)
    assert not leftover.exists()


def test_foreign_folders_are_refused_untouched(tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="root must be empty or hold a phantom"):
        write_phantom(SMALL, foreign)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="root must be a folder"):
        write_phantom(SMALL, foreign / "thesis.txt")
    phantom = write_phantom(dataclasses.replace(SMALL, num_patients=1), tmp_path / "phantom")
    with pytest.raises(ValueError, match="got another one"):
        write_phantom(SMALL, phantom)
