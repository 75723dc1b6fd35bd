"""The phantom as M&Ms: one cine per patient, labelled at two frames.

    211230_M&Ms_Dataset_information_diagnosis_opendataset.csv
    Training/Labeled/patient001/patient001_sa.nii.gz        (x, y, z, frame)
    Training/Labeled/patient001/patient001_sa_gt.nii.gz     labels at the frames ED and ES, else 0

The cine is short: ED, ES and blends of the two. Labels are 1 LV, 2 myocardium, 3 RV, so RV and LV
are the other way round than in ACDC. The frame numbers in the table count from 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spcl_fast.segmentation.phantom.config import PhantomConfig
from spcl_fast.segmentation.phantom.layouts.layout import LayoutWriter, csv_text, write_nifti
from spcl_fast.segmentation.phantom.patient import PhantomPatient, group_of, patient_name, vendor_of

TABLE = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
VALUES = np.array([0, 3, 2, 1], np.uint8)  # background, RV, MYO, LV
SHARE_OF_ES = (0.0, 0.5, 1.0, 0.7, 0.3)  # of each frame
ED_FRAME, ES_FRAME = SHARE_OF_ES.index(0.0), SHARE_OF_ES.index(1.0)
NUM_CENTRES = 6  # two a vendor
FRAME_S = 0.2


def _write(patient: PhantomPatient, index: int, folder: Path) -> list[str]:
    ed, es = patient.images["ED"], patient.images["ES"]
    cine = np.stack([np.rint((1 - share) * ed + share * es) for share in SHARE_OF_ES])
    labels = np.zeros(cine.shape, np.uint8)
    labels[ED_FRAME], labels[ES_FRAME] = VALUES[patient.masks["ED"]], VALUES[patient.masks["ES"]]
    home = folder / patient.name
    for suffix, volume in (("sa", cine.astype(np.int16)), ("sa_gt", labels)):
        path = home / f"{patient.name}_{suffix}.nii.gz"
        write_nifti(path, volume, patient.spacing_mm, frame_s=FRAME_S)
    return [patient.name]


def _tables(config: PhantomConfig, root: Path, num_patients: int) -> dict[str, str]:
    header = ("External code", "VendorName", "Vendor", "Centre", "ED", "ES", "Pathology")
    rows: list[tuple[object, ...]] = [header]
    for index in range(num_patients):
        vendor, centre = vendor_of(index), index // 5 % NUM_CENTRES + 1
        frames = (ED_FRAME, ES_FRAME)
        rows.append(
            (patient_name(index), f"Phantom {vendor}", vendor, centre, *frames, group_of(index))
        )
    return {TABLE: csv_text(rows)}


LAYOUT = LayoutWriter(folder="Training/Labeled", last=patient_name, write=_write, tables=_tables)
