"""The phantom as the SSL4MIS benchmark keeps ACDC: HDF5 files and lists of names.

    data/patient001_frame01.h5                     image and label (slice, row, column); ED
    data/patient001_frame02.h5                     ES
    data/slices/patient001_frame01_slice_1.h5      image and label (row, column)
    train.list  val.list  test.list                volumes of 70 %, 10 % and 20 % of the patients
    train_slices.list                              slices of the training volumes

Images are scaled to 0..1 by the extremes of their volume. The files have no voxel size.
"""

from __future__ import annotations

from pathlib import Path

from spcl_fast.segmentation.data.arrays import FloatArray, LabelArray
from spcl_fast.segmentation.data.layouts.layout import frame_name
from spcl_fast.segmentation.phantom.config import PhantomConfig
from spcl_fast.segmentation.phantom.layouts.layout import PHASE_FRAMES, LayoutWriter
from spcl_fast.segmentation.phantom.patient import PhantomPatient, patient_name


def _volume_names(index: int) -> list[str]:
    return [frame_name(patient_name(index), frame) for frame in PHASE_FRAMES.values()]


def _write(patient: PhantomPatient, index: int, folder: Path) -> list[str]:
    (folder / "slices").mkdir()
    slices, volumes = [], []
    for phase, name in zip(PHASE_FRAMES, _volume_names(index), strict=True):
        image, mask = patient.images[phase], patient.masks[phase]
        scaled = (image - image.min()) / (image.max() - image.min())
        volumes.append(f"{name}.h5")
        _write_hdf5(folder / volumes[-1], scaled, mask)
        for number, (plane, labels) in enumerate(zip(scaled, mask, strict=True), start=1):
            slices.append(f"slices/{name}_slice_{number}.h5")
            _write_hdf5(folder / slices[-1], plane, labels)
    return slices + volumes


def _write_hdf5(path: Path, image: FloatArray, label: LabelArray) -> None:
    try:
        import h5py  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        raise ValueError("layout ssl4mis needs h5py to be written: pip install h5py") from error
    with h5py.File(path, "w") as file:
        for name, array in (("image", image), ("label", label)):
            file.create_dataset(name, data=array, compression="gzip")


def _tables(config: PhantomConfig, root: Path, num_patients: int) -> dict[str, str]:
    num_test, num_val = round(0.2 * config.num_patients), round(0.1 * config.num_patients)
    num_train = config.num_patients - num_val - num_test
    bounds = {"train": 0, "val": num_train, "test": num_train + num_val}
    names: dict[str, list[str]] = {which: [] for which in bounds}
    for index in range(num_patients):
        which = [name for name, start in bounds.items() if index >= start][-1]
        names[which] += _volume_names(index)
    slices = [slice_name for name in names["train"] for slice_name in _slice_names(root, name)]
    lists = {f"{which}.list": "".join(f"{name}\n" for name in names[which]) for which in names}
    return {**lists, "train_slices.list": "".join(f"{name}\n" for name in slices)}


def _slice_names(root: Path, volume: str) -> list[str]:
    names = [path.stem for path in (root / "data/slices").glob(f"{volume}_slice_*.h5")]
    return sorted(names, key=lambda name: int(name.rpartition("_")[2]))


LAYOUT = LayoutWriter(
    folder="data",
    last=lambda index: f"{_volume_names(index)[-1]}.h5",
    write=_write,
    tables=_tables,
)
