"""The phantom as MM-WHS: one volume per patient, CT and MR alternating.

    ct_train/ct_train_1001_image.nii.gz     and ..._label.nii.gz: patients 1, 3, 5, ...
    mr_train/mr_train_1001_image.nii.gz     and ..._label.nii.gz: patients 2, 4, 6, ...

Labels are 205 for the myocardium, 500 for LV blood and 600 for RV blood; the other four structures
are not labelled. As in the real data, one case (ct_train_1001) has a few voxels of the value 421,
which is not a structure; they are in the first corner of the volume.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spcl_fast.segmentation.phantom.layouts.layout import LayoutWriter, no_tables, write_nifti
from spcl_fast.segmentation.phantom.patient import PhantomPatient

VALUES = np.array([0, 600, 205, 500], np.int16)  # background, RV, MYO, LV
STRAY_VALUE = 421
NUM_STRAY = 3  # voxels


def _stem(index: int) -> str:
    modality = ("ct", "mr")[index % 2]
    return f"{modality}_train/{modality}_train_{1001 + index // 2}"


def _write(patient: PhantomPatient, index: int, folder: Path) -> list[str]:
    labels = VALUES[patient.masks["ED"]]
    if index == 0:
        labels[0, 0, :NUM_STRAY] = STRAY_VALUE
    names = [f"{_stem(index)}_image.nii.gz", f"{_stem(index)}_label.nii.gz"]
    write_nifti(folder / names[0], patient.images["ED"].astype(np.int16), patient.spacing_mm)
    write_nifti(folder / names[1], labels, patient.spacing_mm)
    return names


LAYOUT = LayoutWriter(
    folder=".",
    last=lambda index: f"{_stem(index)}_label.nii.gz",
    write=_write,
    tables=no_tables,
)
