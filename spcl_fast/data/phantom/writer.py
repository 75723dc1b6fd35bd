"""Write a phantom data set to disk in ACDC's layout.

    <root>/phantom.json                                      the configuration; marks the folder
    <root>/metadata.csv                                      patient, vendor
    <root>/training/patient001/Info.cfg                      ED, ES, Group, Height, NbFrame, Weight
    <root>/training/patient001/patient001_frame01.nii.gz     and ..._gt.nii.gz, for ED and ES

NIfTI arrays are indexed (x, y, z): the transpose of our (slice, row, column).
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spcl_fast.data.phantom.patient import (
    PhantomConfig,
    PhantomPatient,
    make_patient,
    patient_name,
    vendor_of,
)

MARKER = "phantom.json"
VERSION = 1  # raise it when the same configuration draws other images
_UNFINISHED = ".unfinished-"


def write_acdc(
    config: PhantomConfig,
    root: Path | str,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write every patient of a phantom data set; finished patients of an earlier call are kept.

    A patient is written to a temporary folder and then renamed, so an interrupted call leaves
    whole patients only, and calling again completes the set.

    Args:
        config: The data set.
        root: Folder to write to; created if missing.
        progress: Called with (patients done, patients in all) after each patient.

    Returns:
        ``root``, ready for `spcl_fast.data.acdc.find_scans`; ``root / "metadata.csv"`` holds the
        vendor of each patient.

    Raises:
        ValueError: If ``root`` is a file, holds other files, or a phantom of another configuration.
    """
    root = Path(root)
    _claim(config, root)
    training = root / "training"
    training.mkdir(exist_ok=True)
    for leftover in training.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for index in range(config.num_patients):
        if not (training / patient_name(index)).exists():
            _write_patient(make_patient(config, index), training)
        if progress is not None:
            progress(index + 1, config.num_patients)
    rows = [("patient", "vendor")]
    rows += [(patient_name(index), vendor_of(index)) for index in range(config.num_patients)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    _write_text(root / "metadata.csv", text.getvalue())
    return root


def _claim(config: PhantomConfig, root: Path) -> None:
    """Create or recognise the folder, or refuse it."""
    if root.exists() and not root.is_dir():
        raise ValueError(f"root must be a folder, got the file {root}")
    root.mkdir(parents=True, exist_ok=True)
    marker = root / MARKER
    mark = json.dumps({"version": VERSION, **asdict(config)}, indent=2) + "\n"
    if marker.exists():
        if marker.read_text(encoding="utf-8", errors="replace") != mark:
            raise ValueError(f"root must be empty or hold this phantom, got another one in {root}")
        return
    if any(root.iterdir()):
        raise ValueError(f"root must be empty or hold a phantom, got other files in {root}")
    _write_text(marker, mark)


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f"{_UNFINISHED}{path.name}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _write_patient(patient: PhantomPatient, parent: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=parent))
    try:
        for phase, frame in patient.frames.items():
            stem = folder / f"{patient.name}_frame{frame:02d}"
            _write_nifti(Path(f"{stem}.nii.gz"), patient.images[phase].astype(np.int16), patient)
            _write_nifti(Path(f"{stem}_gt.nii.gz"), patient.masks[phase], patient)
        (folder / "Info.cfg").write_text(_info(patient), encoding="utf-8")
        folder.chmod(0o755)  # mkdtemp makes it private
        os.replace(folder, parent / patient.name)
    except BaseException:  # an interrupt too: nothing unfinished stays behind
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_nifti(path: Path, volume: NDArray[Any], patient: PhantomPatient) -> None:
    import nibabel

    dz, dy, dx = patient.spacing_mm
    affine = np.diag([dx, dy, dz, 1.0])
    image: Any = nibabel.Nifti1Image(volume.T, affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, path)


def _info(patient: PhantomPatient) -> str:
    return (
        f"ED: {patient.frames['ED']}\nES: {patient.frames['ES']}\nGroup: {patient.group}\n"
        f"Height: {patient.height_cm}\nNbFrame: {patient.num_frames}\n"
        f"Weight: {patient.weight_kg}\n"
    )
