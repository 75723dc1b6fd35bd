"""The phantom in each layout: files that the readers turn back into the drawn patients."""

import dataclasses
import json
import os
from importlib.util import find_spec
from typing import get_args, get_type_hints

import nibabel
import numpy as np
import pytest

from spcl_fast.cli import main
from spcl_fast.segmentation.commands.make_phantom import MakePhantomConfig
from spcl_fast.segmentation.data.find import find_data
from spcl_fast.segmentation.data.image_file import NOMINAL_SPACING_MM
from spcl_fast.segmentation.data.volume import read_image, read_scan
from spcl_fast.segmentation.phantom import PhantomConfig, make_patient, write_phantom
from spcl_fast.segmentation.phantom.layouts import LAYOUTS, mnms

CONFIG = PhantomConfig(num_patients=3, size=32, pixel_mm=6.0, flip_probability=0.5)
WITH_BOTH_PHASES = ("acdc", "nnunet", "mnms", "ssl4mis")
TABLES = (".csv", ".json", ".list")
RV, MYO, LV = 1, 2, 3
HAS_HDF5 = find_spec("h5py") is not None
needs_hdf5 = pytest.mark.skipif(not HAS_HDF5, reason="needs h5py")
EVERY_LAYOUT = [pytest.param(n, marks=needs_hdf5) if n == "ssl4mis" else n for n in LAYOUTS]

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    return {
        name: write_phantom(CONFIG, folder / name, name)
        for name in LAYOUTS
        if name != "ssl4mis" or HAS_HDF5
    }


@pytest.fixture(scope="module")
def patients():
    return [make_patient(CONFIG, index) for index in range(CONFIG.num_patients)]


def read(root):
    data = find_data(root)
    return data, [(scan, read_scan(scan)) for scan in data.scans]


def test_the_command_line_knows_every_layout():
    assert get_args(get_type_hints(MakePhantomConfig)["layout"]) == tuple(LAYOUTS)


# Those that number the classes as the generator does: the arrays come back as they are.
@pytest.mark.parametrize("layout", ["acdc", "nnunet", "mnms"])
def test_both_phases_come_back(layout, roots, patients):
    data, volumes = read(roots[layout])
    assert data.class_names == ("background", "RV", "MYO", "LV")
    assert len(volumes) == 2 * len(patients)
    for place, (scan, volume) in enumerate(volumes):
        patient, phase = patients[place // 2], ("ED", "ES")[place % 2]
        assert scan.patient == patient.name
        assert scan.phase == (None if layout == "nnunet" else phase)
        assert np.array_equal(volume.image, patient.images[phase])
        assert np.array_equal(volume.mask, patient.masks[phase])
        assert volume.spacing_mm == pytest.approx(patient.spacing_mm, rel=1e-5)


def test_msd_holds_the_ed_volumes(roots, patients):
    data, volumes = read(roots["msd"])
    assert (data.layout, data.class_names) == ("msd", ("background", "RV", "MYO", "LV"))
    assert [scan.patient for scan, _ in volumes] == ["phantom_001", "phantom_002", "phantom_003"]
    for patient, (_, volume) in zip(patients, volumes, strict=True):
        assert np.array_equal(volume.image, patient.images["ED"])
        assert np.array_equal(volume.mask, patient.masks["ED"])
        assert volume.spacing_mm == pytest.approx(patient.spacing_mm, rel=1e-5)


def test_promise12_has_the_heart_as_one_class(roots, patients):
    data, volumes = read(roots["promise12"])
    assert data.layout == "promise12"
    assert [scan.patient for scan, _ in volumes] == ["Case00", "Case01", "Case02"]
    for patient, (_, volume) in zip(patients, volumes, strict=True):
        assert np.array_equal(volume.image, patient.images["ED"])
        assert np.array_equal(volume.mask, patient.masks["ED"] > 0)
        assert volume.spacing_mm == patient.spacing_mm  # decimal text, not float32


def test_mmwhs_has_its_own_values_and_a_stray_one(roots, patients):
    data, volumes = read(roots["mmwhs"])
    assert data.layout == "mmwhs"
    order = {"ct_train_1001": 0, "mr_train_1001": 1, "ct_train_1002": 2}
    assert {scan.patient: scan.meta["modality"] for scan, _ in volumes} == {
        name: name[:2] for name in order
    }
    for scan, volume in volumes:
        patient = patients[order[scan.patient]]
        names = np.array(["background", "RV", "MYO", "LV"])[patient.masks["ED"]]
        assert np.array_equal(np.array(data.class_names)[volume.mask], names)
        assert np.array_equal(volume.image, patient.images["ED"])
        stored = np.unique(np.asarray(nibabel.load(scan.mask).dataobj)).tolist()
        assert stored == [0, 205, *([421] if scan.patient == "ct_train_1001" else []), 500, 600]


def test_mmwhs_read_with_four_classes(roots, patients):
    data = find_data(roots["mmwhs"], layout="mmwhs4")
    volume = read_scan(data.scans[0])
    assert ((volume.mask > 0) == np.isin(patients[0].masks["ED"], [MYO, LV])).all()


@needs_hdf5
def test_ssl4mis_keeps_no_intensity_and_no_spacing(roots, patients):
    _, volumes = read(roots["ssl4mis"])
    assert len(volumes) == 2 * len(patients)
    for place, (scan, volume) in enumerate(volumes):
        patient, phase = patients[place // 2], ("ED", "ES")[place % 2]
        assert (scan.patient, scan.phase) == (patient.name, phase)
        image = patient.images[phase]
        scaled = (image - image.min()) / np.ptp(image)
        assert np.allclose(volume.image, scaled, atol=1e-6)
        assert np.array_equal(volume.mask, patient.masks[phase])
        assert volume.spacing_mm == NOMINAL_SPACING_MM[::-1]


@needs_hdf5
def test_ssl4mis_scales_from_the_darkest_voxel(patients, tmp_path):
    images = {phase: image + 100 for phase, image in patients[0].images.items()}
    LAYOUTS["ssl4mis"].write(dataclasses.replace(patients[0], images=images), 0, tmp_path)
    scaled, _, _ = read_image(tmp_path / "patient001_frame02.h5")
    assert (scaled.min(), scaled.max()) == (0, 1)


@needs_hdf5
def test_ssl4mis_lists_every_volume_once_and_the_slices_of_training(roots, patients):
    import h5py

    root = roots["ssl4mis"]
    names = {k: (root / f"{k}.list").read_text().split() for k in ("train", "val", "test")}
    assert names["train"] == [f"patient00{k}_frame0{f}" for k in (1, 2) for f in (1, 2)]
    assert names["val"] == []
    assert names["test"] == ["patient003_frame01", "patient003_frame02"]
    slices = (root / "train_slices.list").read_text().split()
    depths = [len(p.images[phase]) for p in patients[:2] for phase in ("ED", "ES")]
    assert slices == [
        f"{name}_slice_{number}"
        for name, depth in zip(names["train"], depths, strict=True)
        for number in range(1, depth + 1)
    ]
    with h5py.File(root / "data/slices/patient002_frame02_slice_3.h5") as file:
        assert np.array_equal(file["label"], patients[1].masks["ES"][2])
    assert len(list((root / "data/slices").iterdir())) == sum(
        2 * len(patient.images["ED"]) for patient in patients
    )


def test_acdc_and_mnms_carry_meta_labels(roots, patients):
    found = find_data(roots["acdc"], roots["acdc"] / "metadata.csv").scans
    for place, scan in enumerate(found):
        patient = patients[place // 2]
        assert dict(scan.meta) == {"group": patient.group, "vendor": patient.vendor}
    for place, scan in enumerate(find_data(roots["mnms"]).scans):
        patient = patients[place // 2]
        assert scan.meta["group"] == patient.group
        assert scan.meta["vendor"] == patient.vendor


def test_mnms_cine_is_labelled_at_two_frames_only(roots, patients):
    folder = roots["mnms"] / "Training/Labeled/patient001"
    labels = np.asarray(nibabel.load(folder / "patient001_sa_gt.nii.gz").dataobj)
    cine = nibabel.load(folder / "patient001_sa.nii.gz")
    assert labels.any((0, 1, 2)).nonzero()[0].tolist() == [mnms.ED_FRAME, mnms.ES_FRAME]
    assert (labels[..., mnms.ED_FRAME] == 1).sum() == (patients[0].masks["ED"] == LV).sum()
    assert (labels[..., mnms.ED_FRAME] == 3).sum() == (patients[0].masks["ED"] == RV).sum()
    frames = np.asarray(cine.dataobj).T.astype(float)
    low = np.minimum(patients[0].images["ED"], patients[0].images["ES"])
    high = np.maximum(patients[0].images["ED"], patients[0].images["ES"])
    assert ((frames >= low) & (frames <= high)).all()
    assert len({frame.tobytes() for frame in frames}) == len(frames) > 2
    assert cine.header.get_zooms()[3] == pytest.approx(mnms.FRAME_S)


def test_dataset_json_of_both_kinds(roots):
    decathlon, nnunet = (
        json.loads((roots[name] / "dataset.json").read_text()) for name in ("msd", "nnunet")
    )
    assert decathlon["labels"] == {"0": "background", "1": "RV", "2": "MYO", "3": "LV"}
    assert nnunet["labels"] == {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
    assert (decathlon["numTraining"], nnunet["numTraining"]) == (3, 6)
    for pair in decathlon["training"]:
        assert all((roots["msd"] / path).is_file() for path in pair.values())


class StopWritingError(Exception):
    pass


def num_scans(layout, num_patients):
    return num_patients * (2 if layout in WITH_BOTH_PHASES else 1)


def files_below(root):
    return {path.relative_to(root) for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("layout", EVERY_LAYOUT)
def test_interrupted_between_patients_then_completed(layout, roots, tmp_path):
    def stop(done, total):
        if done == 2:
            raise StopWritingError

    with pytest.raises(StopWritingError):
        write_phantom(CONFIG, tmp_path, layout, progress=stop)
    assert len(find_data(tmp_path).scans) == num_scans(layout, 2)
    times = {path: (tmp_path / path).stat().st_mtime_ns for path in files_below(tmp_path)}
    write_phantom(CONFIG, tmp_path, layout)
    assert len(find_data(tmp_path).scans) == num_scans(layout, 3)
    for path in times:
        if path.suffix not in TABLES:
            assert (tmp_path / path).stat().st_mtime_ns == times[path]
    assert files_below(tmp_path) == files_below(roots[layout])


# While the second patient's files are moved: at its first, at its last, and by the keyboard.
@pytest.mark.parametrize(("move", "error"), [(1, OSError), (-1, OSError), (1, KeyboardInterrupt)])
@pytest.mark.parametrize("layout", EVERY_LAYOUT)
def test_interrupted_within_a_patient(layout, move, error, roots, tmp_path, monkeypatch):
    first = write_phantom(dataclasses.replace(CONFIG, num_patients=1), tmp_path / "one", layout)
    parent = tmp_path / "all" / LAYOUTS[layout].folder
    last = parent / LAYOUTS[layout].last(1)
    replace, moves = os.replace, []

    def failing(source, target):
        if (parent / LAYOUTS[layout].last(0)).exists() and target.suffix not in TABLES:
            moves.append(target)
            if len(moves) == move or (move == -1 and target == last):
                raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(error):
        write_phantom(CONFIG, tmp_path / "all", layout)
    monkeypatch.undo()
    assert moves[0].parent.is_dir()
    assert files_below(tmp_path / "all") == files_below(first)
    assert len(find_data(tmp_path / "all").scans) == num_scans(layout, 1)
    write_phantom(CONFIG, tmp_path / "all", layout)
    assert files_below(tmp_path / "all") == files_below(roots[layout])


# One layout with a folder a patient, one with several files a patient, one below the root itself.
@pytest.mark.parametrize("layout", ["acdc", "promise12", "msd"])
def test_leftovers_of_a_killed_process_go(layout, roots, tmp_path):
    config = dataclasses.replace(CONFIG, num_patients=1)
    write_phantom(config, tmp_path, layout)
    leftover = tmp_path / LAYOUTS[layout].folder / ".unfinished-abc"
    leftover.mkdir()
    (leftover / "Case01.mhd").write_bytes(b"half")
    assert len(find_data(tmp_path).scans) == num_scans(layout, 1)
    write_phantom(config, tmp_path, layout)
    assert not leftover.exists()


def test_another_layout_is_refused(roots, tmp_path):
    with pytest.raises(ValueError, match="got another one"):
        write_phantom(CONFIG, roots["msd"], "nnunet")
    with pytest.raises(ValueError, match="got another one"):
        write_phantom(CONFIG, roots["acdc"], "msd")
    with pytest.raises(ValueError, match=r"layout must be one of acdc, promise12, .* got 'dicom'"):
        write_phantom(CONFIG, tmp_path, "dicom")
    assert list(tmp_path.iterdir()) == []


def test_make_phantom_writes_a_layout(tmp_path, capsys):
    args = ["--root", str(tmp_path / "made"), "--layout", "promise12", "--num-patients", "1"]
    assert main(["data", "make-phantom", *args]) == 0
    assert str(tmp_path / "made") in capsys.readouterr().out
    assert [scan.name for scan in find_data(tmp_path / "made").scans] == ["Case00"]
