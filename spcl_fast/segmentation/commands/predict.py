"""Segment images with the network of a run, or with those of several."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from spcl_fast.segmentation.commands.trained import load_trained, one_or_more
from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.evaluate.cases import Frame, VolumeChoice, cases_of
from spcl_fast.segmentation.evaluate.predict import out_file, segment_images, write_summary
from spcl_fast.segmentation.evaluate.reading import Reading
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.runs.device import Device, set_up_device
from spcl_fast.segmentation.runs.progress import say


@dataclass(frozen=True)
class PredictConfig:
    """Segment images with a trained network.

    Attributes:
        run: Run folder of `finetune`, or several, whose probabilities are averaged.
        images: An image, or a folder of them: .nii, .nii.gz, .mhd, .mha, or the .h5 of SSL4MIS.
        out: Folder for NAME_pred.nii.gz; existing files of that name are replaced.
        device: "auto" uses CUDA if available.
        summary: CSV file to write, with the seconds, the voxels and millilitres of each class, or
            the error of every case.
        channel: Channel of images that have several, along their fourth axis or in files
            NAME_0000, NAME_0001; "none" if they have none. None takes that of the run.
        frame: Frame of 4-D images over time, from 0, or "all". None is "all" for a run that was
            trained on such images.
        stack_axis: Voxel axis of the files, 0 to 2, along which slices are stacked, with the axes
            as they are stored. None turns the axes to those of the training images, and stacks
            along the axis with the largest voxels.
        flips: Also segment mirrored images, and average: four times the work.
        largest_component: Keep the largest connected component of every class.
    """

    run: tuple[Path, ...]
    images: Path
    out: Path
    device: Device = "auto"
    summary: Path | None = None
    channel: int | Literal["none"] | None = None
    frame: Frame | None = None
    stack_axis: Literal[0, 1, 2] | None = None
    flips: bool = False
    largest_component: bool = False

    def __post_init__(self) -> None:
        """Take a single run for a tuple of one."""
        object.__setattr__(self, "run", one_or_more(self.run))


def predict(config: PredictConfig) -> list[Path]:
    """Segment every image; a failure is reported and the others continue.

    Returns:
        The files written.

    Raises:
        ConfigError, CheckpointError: The run cannot be used.
        DataError: There is no image, two of them would share an output, or some failed.
    """
    model, (trained, *_), reading = load_trained(config.run, flips=config.flips)
    choice = _choice(config, trained, reading)
    cases = cases_of(config.images, config.out, choice)
    model.to(set_up_device(config.device))
    for folder in (config.out, *([config.summary.parent] if config.summary else [])):
        folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    turning = replace(reading.turning, stack_axis=config.stack_axis)
    grid, largest = trained.data.grid, config.largest_component
    rows = segment_images(cases, config.out, model, grid, turning, largest=largest)
    if config.summary:
        write_summary(config.summary, rows, trained.model.num_classes)
    written = [out_file(config.out, row["case"]) for row in rows if "error" not in row]
    seconds = time.perf_counter() - start
    say(f"{len(written)} of {len(cases)} images segmented in {seconds:.1f} s, to {config.out}")
    if failed := len(cases) - len(written):
        images = f"{failed} of {len(cases)} images"
        raise DataError(f"{images} could not be read or segmented, see above")
    return written


def _choice(config: PredictConfig, trained: FinetuneConfig, reading: Reading) -> VolumeChoice:
    """Return which volumes are segmented: those that the options name, else as in training."""
    if config.channel == "none":
        return VolumeChoice(frame=config.frame, is_asked=True)
    if config.channel is not None:
        return VolumeChoice(config.channel, in_files=True, on_axis=config.frame is None)
    if reading.channels is not None:
        in_files = reading.channels == "files"
        return VolumeChoice(trained.data.channel, in_files=in_files, on_axis=not in_files)
    is_all = config.frame is None and reading.has_frames
    return VolumeChoice(frame="all" if is_all else config.frame)
