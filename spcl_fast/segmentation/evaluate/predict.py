"""Prediction: images in, NIfTI labels out on the original grid and affine."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spcl_fast.atomic_file import atomic_file
from spcl_fast.segmentation.data.image_file import SUFFIXES
from spcl_fast.segmentation.data.scan import DataError, read_image, write_labels
from spcl_fast.segmentation.evaluate.scans import segment_volume
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.runs.config import stage_config
from spcl_fast.segmentation.runs.device import Device, set_up_device
from spcl_fast.segmentation.runs.network import load_segmenter
from spcl_fast.segmentation.runs.progress import progress_bar, say


@dataclass(frozen=True)
class PredictConfig:
    """Segment images with a trained network.

    Attributes:
        run: Run folder of `finetune`.
        images: An image, or a folder of them: .nii, .nii.gz, .mhd, .mha, or the .h5 of SSL4MIS.
        out: Folder for NAME_pred.nii.gz; a file of that name is replaced.
        device: "auto" takes CUDA where there is one.
        summary: CSV file to write: of every case the seconds it took, the voxels and millilitres of
            each class, and the error where it failed.
    """

    run: Path
    images: Path
    out: Path
    device: Device = "auto"
    summary: Path | None = None


def predict(config: PredictConfig) -> list[Path]:
    """Segment every image; one that fails is named and the others are still done.

    Returns:
        The files written.

    Raises:
        ConfigError, CheckpointError: The run cannot be used.
        DataError: There is no image, two of them would share an output, or some failed.
    """
    cases = _cases(config)
    trained = stage_config(FinetuneConfig, "finetune", config.run / "config.yaml")
    model = load_segmenter(config.run, trained.model).to(set_up_device(config.device))
    for folder in (config.out, *([config.summary.parent] if config.summary else [])):
        folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    written: list[Path] = []
    start = time.perf_counter()
    with progress_bar("predict", len(cases)) as show:
        for step, (case, path) in enumerate(cases.items(), 1):
            target = config.out / f"{case}_pred.nii.gz"
            try:
                rows.append(_segment(case, path, target, model, trained))
                written.append(target)
            except Exception as error:  # whatever is wrong with one case, the others are done
                message = _sentence(path, error)
                say(f"skipped: {message}")
                rows.append({"case": case, "error": message})
            show(step, path.name)
    if config.summary:
        _write_summary(config.summary, rows, trained.model.num_classes)
    seconds = time.perf_counter() - start
    say(f"{len(written)} of {len(cases)} images segmented in {seconds:.1f} s, to {config.out}")
    if failed := len(cases) - len(written):
        images = f"{failed} of {len(cases)} images"
        raise DataError(f"{images} could not be read or segmented, see above")
    return written


def find_images(path: Path) -> Sequence[Path]:
    """Return `path`, or the images in the folder `path`, sorted; hidden files are left out.

    Raises:
        DataError: There is none.
    """
    if path.is_file():
        return [path]
    files = sorted(path.iterdir()) if path.is_dir() else []
    found = [p for p in files if p.name.endswith(SUFFIXES) and not p.name.startswith(".")]
    if not found:
        kinds = ", ".join(SUFFIXES)
        raise DataError(f"images must be a NIfTI file, another of {kinds}, or a folder, got {path}")
    return found


def _cases(config: PredictConfig) -> dict[str, Path]:
    """Return the images by the name that their output begins with."""
    cases: dict[str, Path] = {}
    for path in find_images(config.images):
        suffix = next((s for s in SUFFIXES if path.name.endswith(s)), "")
        case = path.name.removesuffix(suffix)
        if case in cases:
            raise DataError(
                f"images must have different names, got {cases[case].name} and {path.name} "
                f"for {case}_pred.nii.gz"
            )
        cases[case] = path
    if config.images.is_dir() and config.out.resolve() == config.images.resolve():
        raise DataError(f"out must be another folder than images, got {config.out}")
    return cases


def _segment(
    case: str, path: Path, target: Path, model: nn.Module, trained: FinetuneConfig
) -> dict[str, Any]:
    """Write the labels of one image; return its row of the summary."""
    start = time.perf_counter()
    image, spacing_mm, affine = read_image(path)
    label = segment_volume(model, torch.from_numpy(image), spacing_mm, trained.data.grid)
    write_labels(target, label.numpy(), affine)
    row: dict[str, Any] = {"case": case, "seconds": round(time.perf_counter() - start, 3)}
    voxels = torch.bincount(label.flatten(), minlength=trained.model.num_classes).tolist()
    voxel_ml = math.prod(spacing_mm) / 1000.0  # 1000 cubic millimetres are a millilitre
    row |= {f"voxels_{k}": count for k, count in enumerate(voxels)}
    return row | {f"ml_{k}": round(count * voxel_ml, 3) for k, count in enumerate(voxels)}


def _sentence(path: Path, error: Exception) -> str:
    if isinstance(error, DataError):
        return str(error)  # names the file
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{path} could not be segmented: {' '.join(reason.split()) or type(error).__name__}"


def _write_summary(path: Path, rows: Sequence[dict[str, Any]], num_classes: int) -> None:
    counts = [f"{unit}_{k}" for unit in ("voxels", "ml") for k in range(num_classes)]
    with atomic_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["case", "seconds", *counts, "error"], restval="")
        table.writeheader()
        table.writerows(rows)
