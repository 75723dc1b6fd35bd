"""The phantom as ACDC.

metadata.csv                                      patient, vendor
training/patient001/Info.cfg                      ED, ES, Group, Height, NbFrame, Weight
training/patient001/patient001_frame01.nii.gz     and ..._gt.nii.gz, for ED and ES
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spcl_fast.segmentation.data.layouts.layout import frame_name
from spcl_fast.segmentation.phantom.config import PhantomConfig
from spcl_fast.segmentation.phantom.layouts.layout import LayoutWriter, csv_text, write_nifti
from spcl_fast.segmentation.phantom.patient import PhantomPatient, patient_name, vendor_of


def _write(patient: PhantomPatient, index: int, folder: Path) -> list[str]:
    home = folder / patient.name
    home.mkdir()
    for phase, frame in patient.frames.items():
        stem = home / frame_name(patient.name, frame)
        image, mask = patient.images[phase].astype(np.int16), patient.masks[phase]
        write_nifti(Path(f"{stem}.nii.gz"), image, patient.spacing_mm)
        write_nifti(Path(f"{stem}_gt.nii.gz"), mask, patient.spacing_mm)
    (home / "Info.cfg").write_text(_info(patient), encoding="utf-8")
    return [patient.name]


def _info(patient: PhantomPatient) -> str:
    return (
        f"ED: {patient.frames['ED']}\nES: {patient.frames['ES']}\nGroup: {patient.group}\n"
        f"Height: {patient.height_cm}\nNbFrame: {patient.num_frames}\n"
        f"Weight: {patient.weight_kg}\n"
    )


def _tables(config: PhantomConfig, root: Path, num_patients: int) -> dict[str, str]:
    rows = [(patient_name(index), vendor_of(index)) for index in range(num_patients)]
    return {"metadata.csv": csv_text([("patient", "vendor"), *rows])}


LAYOUT = LayoutWriter(folder="training", last=patient_name, write=_write, tables=_tables)
