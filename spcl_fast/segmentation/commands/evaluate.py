"""Evaluate the segmenter of a run, or of several, on its own test scans or on another data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spcl_fast.segmentation.commands.trained import load_trained, one_or_more
from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.find import find_data
from spcl_fast.segmentation.data.layouts import LayoutName
from spcl_fast.segmentation.data.scan import Scan
from spcl_fast.segmentation.evaluate.axes import Turning
from spcl_fast.segmentation.evaluate.case_table import CASES_FILE, write_scores
from spcl_fast.segmentation.evaluate.classes import matched_by_name
from spcl_fast.segmentation.evaluate.metrics import Absent
from spcl_fast.segmentation.evaluate.reading import Reading
from spcl_fast.segmentation.evaluate.record import Evaluation
from spcl_fast.segmentation.evaluate.scans import evaluate_scans
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.runs.config import ConfigError
from spcl_fast.segmentation.runs.dataset import DataConfig, split_scans
from spcl_fast.segmentation.runs.device import Device, set_up_device
from spcl_fast.segmentation.runs.progress import say


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate the segmenter of a run.

    Attributes:
        run: Run folder of `finetune`, or several with the same test scans, whose probabilities are
            averaged.
        root: Another data set in one of the layouts, to evaluate on all of its scans; None means
            the run's own test scans.
        out: Folder for evaluation.json, evaluation.csv with a row for every scan, and predictions;
            None prints only.
        json: Print the content of evaluation.json instead of a table.
        device: "auto" uses CUDA if available.
        layout: Layout of `root`; "auto" detects it.
        absent_class: A class without a voxel in the mask of a scan: "nan" leaves it out there, as
            not annotated; "score" counts Dice 1 where it was not found either, else 0.
        match: Classes of `root` are those of the run with the same "name", or "number".
        flips: Also segment mirrored images, and average: four times the work.
        largest_component: Keep the largest connected component of every class.
    """

    run: tuple[Path, ...]
    root: Path | None = None
    out: Path | None = None
    json: bool = False
    device: Device = "auto"
    layout: LayoutName = "auto"
    match: Literal["name", "number"] = "name"
    absent_class: Absent = "nan"
    flips: bool = False
    largest_component: bool = False

    def __post_init__(self) -> None:
        """Take a single run for a tuple of one."""
        object.__setattr__(self, "run", one_or_more(self.run))


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Return Dice and HD95 (mm) of every scan and class.

    Raises:
        DataError, ConfigError, CheckpointError: One sentence for the user.
    """
    model, configs, reading = load_trained(config.run, flips=config.flips)
    data = configs[0].data
    if config.root:
        scans = _other_scans(config, config.root, data, reading)
        turning: Turning | None = reading.turning
    else:
        scans, turning = _own_scans(config.run, configs), None
    model.to(set_up_device(config.device))
    evaluation = evaluate_scans(
        model,
        scans,
        data.grid,
        config.out / "predictions" if config.out else None,
        config.absent_class,
        turning,
        largest=config.largest_component,
    )
    if config.out:
        write_scores(config.out, evaluation)
        say(f"every scan: {config.out / CASES_FILE}")
    for name, count in evaluation.absences.items():
        say(f"warning: {name} is in no voxel of {count} of {len(scans)} masks: not scored there")
    return evaluation


def _own_scans(runs: Sequence[Path], configs: Sequence[FinetuneConfig]) -> list[Scan]:
    """Return the test scans of the runs, the same in all."""
    tests = [split_scans(one.data).test for one in configs]
    for run, test in zip(runs, tests, strict=True):
        if not test:
            raise DataError(f"{run} has no test scans (data.num_test 0): give --root")
        if [(scan.image, scan.frame) for scan in test] != [(s.image, s.frame) for s in tests[0]]:
            raise ConfigError(
                f"run must name runs with the same test scans, got {runs[0]} and {run}"
            )
    return tests[0]


def _other_scans(
    config: EvaluateConfig, root: Path, data: DataConfig, reading: Reading
) -> list[Scan]:
    """Return the scans below a folder, with the classes of the run."""
    found = find_data(root, layout=config.layout, choice=data.choice).scans
    scans = [scan for scan in found if scan.mask is not None]
    if without := [scan.name for scan in found if scan.mask is None]:
        say(f"left out, without a mask: {', '.join(without)}")
    if not scans:
        raise DataError(f"{root} must hold scans with masks, got none")
    names = reading.class_names
    return scans if config.match == "number" or names is None else matched_by_name(scans, names)
