"""The phantom as a task of the Medical Segmentation Decathlon: one volume per patient.

dataset.json                       name, modality, labels by number, list of the training files
imagesTr/phantom_001.nii.gz        end-diastolic image
labelsTr/phantom_001.nii.gz
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from spcl_fast.segmentation.data.scan import SHORT_AXIS_CLASSES
from spcl_fast.segmentation.phantom.config import PhantomConfig
from spcl_fast.segmentation.phantom.layouts.layout import LayoutWriter, write_nifti
from spcl_fast.segmentation.phantom.patient import PhantomPatient


def _name(index: int) -> str:
    return f"phantom_{index + 1:03d}.nii.gz"


def _write(patient: PhantomPatient, index: int, folder: Path) -> list[str]:
    names = [f"imagesTr/{_name(index)}", f"labelsTr/{_name(index)}"]
    write_nifti(folder / names[0], patient.images["ED"].astype(np.int16), patient.spacing_mm)
    write_nifti(folder / names[1], patient.masks["ED"], patient.spacing_mm)
    return names


def _tables(config: PhantomConfig, root: Path, num_patients: int) -> dict[str, str]:
    names = [_name(index) for index in range(num_patients)]
    content = {
        "name": "Phantom",
        "description": "Short-axis cardiac phantom",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {str(value): name for value, name in enumerate(SHORT_AXIS_CLASSES)},
        "numTraining": num_patients,
        "numTest": 0,
        "training": [
            {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names
        ],
        "test": [],
    }
    return {"dataset.json": json.dumps(content, indent=1) + "\n"}


LAYOUT = LayoutWriter(
    folder=".", last=lambda index: f"labelsTr/{_name(index)}", write=_write, tables=_tables
)
