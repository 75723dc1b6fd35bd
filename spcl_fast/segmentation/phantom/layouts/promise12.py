"""The phantom as PROMISE12: one volume per case, one class.

    training_data/Case00.mhd                  image, signed 16 bit, with Case00.raw
    training_data/Case00_segmentation.mhd     labels, unsigned 8 bit, with Case00_segmentation.raw

The volume is the end-diastolic one. The class is the heart: RV, myocardium and LV together.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spcl_fast.segmentation.data.metaimage import write_metaimage
from spcl_fast.segmentation.phantom.layouts.layout import LayoutWriter, no_tables
from spcl_fast.segmentation.phantom.patient import PhantomPatient


def _name(index: int) -> str:
    return f"Case{index:02d}"


def _write(patient: PhantomPatient, index: int, folder: Path) -> list[str]:
    name = _name(index)
    heart = (patient.masks["ED"] > 0).astype(np.uint8)
    image = patient.images["ED"].astype(np.int16)
    write_metaimage(folder / f"{name}_segmentation.mhd", heart, patient.spacing_mm)
    write_metaimage(folder / f"{name}.mhd", image, patient.spacing_mm)
    stems = (f"{name}_segmentation", name)
    return [f"{stem}.{kind}" for kind in ("raw", "mhd") for stem in stems]


LAYOUT = LayoutWriter(
    folder="training_data",
    last=lambda index: f"{_name(index)}.mhd",
    write=_write,
    tables=no_tables,
)
