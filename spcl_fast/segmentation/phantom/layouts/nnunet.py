"""The phantom as a data set of nnU-Net v2: two volumes per patient.

dataset.json                                   channels, labels by name, how many cases
imagesTr/patient001_frame01_0000.nii.gz        channel 0 of the ED image; frame02 is ES
labelsTr/patient001_frame01.nii.gz
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from spcl_fast.segmentation.data.layouts.layout import frame_name
from spcl_fast.segmentation.data.scan import SHORT_AXIS_CLASSES
from spcl_fast.segmentation.phantom.config import PhantomConfig
from spcl_fast.segmentation.phantom.layouts.layout import PHASE_FRAMES, LayoutWriter, write_nifti
from spcl_fast.segmentation.phantom.patient import PhantomPatient, patient_name


def _case(index: int, phase: str) -> str:
    return frame_name(patient_name(index), PHASE_FRAMES[phase])


def _write(patient: PhantomPatient, index: int, folder: Path) -> list[str]:
    names = []
    for phase in PHASE_FRAMES:
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
        "numTraining": len(PHASE_FRAMES) * num_patients,
        "file_ending": ".nii.gz",
    }
    return {"dataset.json": json.dumps(content, indent=1) + "\n"}


LAYOUT = LayoutWriter(
    folder=".",
    last=lambda index: f"labelsTr/{_case(index, 'ES')}.nii.gz",
    write=_write,
    tables=_tables,
)
