"""What a layout has to say, and how it writes NIfTI and CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spcl_fast.segmentation.data.arrays import Spacing
from spcl_fast.segmentation.phantom.config import PhantomConfig
from spcl_fast.segmentation.phantom.patient import PhantomPatient

PHASE_FRAMES = {"ED": 1, "ES": 2}  # where a layout renumbers the frames


@dataclass(frozen=True)
class LayoutWriter:
    """How the patients of a phantom become files.

    Attributes:
        folder: Folder below the root that holds all patients.
        last: Returns, for the index of a patient, which of its files or folders, below `folder`,
            appears last: where it is, the patient is whole.
        write: Writes a patient, with its index, into an empty folder in place of `folder`. Returns
            what it wrote, files or folders, in the order in which they are to appear.
        tables: Returns the text of each file about the set as a whole, by its path below the root,
            given the configuration, the root and how many patients are there.
    """

    folder: str
    last: Callable[[int], str]
    write: Callable[[PhantomPatient, int, Path], list[str]]
    tables: Callable[[PhantomConfig, Path, int], dict[str, str]]


def no_tables(config: PhantomConfig, root: Path, num_patients: int) -> dict[str, str]:
    """Return no table: the layout has none."""
    return {}


def write_nifti(
    path: Path, volume: NDArray[Any], spacing_mm: Spacing, *, frame_s: float = 0
) -> None:
    """Write a volume (S, H, W) or a cine (T, S, H, W), indexed (x, y, z) or (x, y, z, t) on disk.

    Args:
        path: File to write; missing folders are made.
        volume: Of a type that NIfTI has.
        spacing_mm: (dz, dy, dx).
        frame_s: Seconds from frame to frame of a cine.
    """
    import nibabel

    dz, dy, dx = spacing_mm
    image: Any = nibabel.Nifti1Image(volume.T, np.diag([dx, dy, dz, 1.0]))  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm", "sec")
    if volume.ndim == 4:
        image.header.set_zooms((dx, dy, dz, frame_s))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Return rows as comma-separated lines."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
