"""The phantom as a data set of nnU-Net v2: two volumes a patient.

dataset.json                                   channels, labels by name, how many cases
imagesTr/patient001_ED_0000.nii.gz             channel 0 of the end-diastolic image; also ES
labelsTr/patient001_ED.nii.gz
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from spcl_fast.segmentation.data.scan import SHORT_AXIS_CLASSES
from spcl_fast.segmentation.phantom.layouts.layout import Layout, write_nifti
from spcl_fast.segmentation.phantom.patient import PhantomConfig, PhantomPatient, patient_name

FRAMES = {"ED": 1, "ES": 2}


def _case(index: int, phase: str) -> str:
    return f"{patient_name(index)}_frame{FRAMES[phase]:02d}"


def _write(patient: PhantomPatient, index: int, folder: Path) -> list[str]:
    names = []
    for phase in FRAMES:
        case = _case(index, phase)
        names += [f"imagesTr/{case}_0000.nii.gz", f"labelsTr/{case}.nii.gz"]
        image = patient.images[phase].astype(np.int16)
        write_nifti(folder / names[-2], image, patient.spacing_mm)
        write_nifti(folder / names[-1], patient.masks[phase], patient.spacing_mm)
    return names


def _tables(config: PhantomConfig, root: Path, num_patients: int) -> dict[str, str]:
    content = {
        "channel_names": {"0": "MRI"},
        "labels": {name: value for value, name in enumerate(SHORT_AXIS_CLASSES)},
        "numTraining": len(FRAMES) * num_patients,
        "file_ending": ".nii.gz",
    }
    return {"dataset.json": json.dumps(content, indent=1) + "\n"}


LAYOUT = Layout(
    folder=".",
    last=lambda index: f"labelsTr/{_case(index, 'ES')}.nii.gz",
    write=_write,
    tables=_tables,
)
