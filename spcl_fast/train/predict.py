"""Prediction: NIfTI images in, NIfTI labels out on the original grid and affine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from spcl_fast.data.scan import DataError, read_image, write_labels
from spcl_fast.train.config import stage_config
from spcl_fast.train.device import Device, set_up_device
from spcl_fast.train.evaluate import segment_volume
from spcl_fast.train.finetune import FinetuneConfig
from spcl_fast.train.network import load_segmenter
from spcl_fast.train.progress import say

SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class PredictConfig:
    """Segment images with a trained network.

    Attributes:
        run: Run folder of `finetune`.
        images: A NIfTI file, or a folder of them.
        out: Folder for NAME_pred.nii.gz.
        device: "auto" takes CUDA where there is one.
    """

    run: Path
    images: Path
    out: Path
    device: Device = "auto"


def predict(config: PredictConfig) -> list[Path]:
    """Segment every image; a bad image is named and the others are still done.

    Returns:
        The files written.

    Raises:
        ConfigError, CheckpointError: The run cannot be used.
        DataError: There is no image, or some could not be segmented.
    """
    images = find_images(config.images)
    trained = stage_config(FinetuneConfig, "finetune", config.run / "config.yaml")
    model = load_segmenter(config.run, trained.model).to(set_up_device(config.device))
    config.out.mkdir(parents=True, exist_ok=True)
    written, failed = [], []
    for path in images:
        try:
            image, spacing_mm, affine = read_image(path)
        except DataError as error:
            say(f"skipped: {error}")
            failed.append(path)
            continue
        label = segment_volume(model, torch.from_numpy(image), spacing_mm, trained.data.grid)
        target = config.out / f"{path.name.removesuffix('.gz').removesuffix('.nii')}_pred.nii.gz"
        write_labels(target, label.numpy(), affine)
        say(f"{path.name} -> {target}")
        written.append(target)
    if failed:
        raise DataError(f"{len(failed)} of {len(images)} images could not be read, see above")
    return written


def find_images(path: Path) -> Sequence[Path]:
    """Return `path`, or the NIfTI files in the folder `path`, sorted.

    Raises:
        DataError: There is none.
    """
    if path.is_file():
        return [path]
    found = sorted(p for p in path.glob("*") if p.name.endswith(SUFFIXES)) if path.is_dir() else []
    if not found:
        raise DataError(f"images must be a NIfTI file or a folder of them, got {path}")
    return found
