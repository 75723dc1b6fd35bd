"""What a data set holds and what is wrong with it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import yaml

from spcl_fast.atomic_file import atomic_file
from spcl_fast.segmentation.data.field_of_view import Proposal
from spcl_fast.segmentation.data.grid import Grid
from spcl_fast.segmentation.data.inspect import Inspection, inspect
from spcl_fast.segmentation.data.inspection_text import render
from spcl_fast.segmentation.data.layouts import LayoutName
from spcl_fast.segmentation.data.layouts.layout import Choice
from spcl_fast.segmentation.pretrain.config import PretrainConfig
from spcl_fast.segmentation.runs.config import ConfigError, stage_config
from spcl_fast.segmentation.runs.dataset import DataConfig
from spcl_fast.segmentation.runs.progress import say


@dataclass(frozen=True)
class InspectConfig:
    """Show what a data set holds and what is wrong with it.

    Attributes:
        root: Folder in one of the layouts; `--root` itself may be omitted.
        csv: Table of further meta-labels.
        layout: Layout of the folder; "auto" detects it.
        grid: Grid that the foreground is measured against.
        config: Configuration file or run folder that the grid is taken from instead.
        write: YAML file to write, with the proposed grid, for `--config` of pretrain and finetune.
        thumbnails: PNG file to draw some of the scans to.
        json: Print JSON instead of text.
        channel: Channel of images that have several (Decathlon, nnU-Net), from 0.
        unlabelled_folders: Take the images of folders without labels too, such as imagesTs.
    """

    root: Path
    csv: Path | None = None
    layout: LayoutName = "auto"
    grid: Grid = field(default_factory=Grid)
    config: Path | None = None
    write: Path | None = None
    thumbnails: Path | None = None
    json: bool = False
    channel: int = 0
    unlabelled_folders: bool = False


class Shown(NamedTuple):
    """The description of a data set.

    Attributes:
        text: The description, or JSON.
        problems: One sentence per unusable scan; also part of the text.
    """

    text: str
    problems: list[str]


def inspect_data(config: InspectConfig) -> Shown:
    """Describe the data set, and draw thumbnails on request.

    Raises:
        DataError: The folder is not in the layout, or the picture cannot be written.
        ConfigError: `config` cannot be used, or `write` exists.
    """
    grid = config.grid if config.config is None else _grid_of(config.config)
    if config.write is not None and config.write.exists():
        raise ConfigError(f"write must be a new file, got {config.write}")
    choice = Choice(config.channel, config.unlabelled_folders)
    found = inspect(config.root, config.csv, grid, layout=config.layout, choice=choice)
    if config.thumbnails is not None and found.readable:
        from spcl_fast.segmentation.report.thumbnails import write_thumbnails

        write_thumbnails(config.thumbnails, found.readable)
    if config.write is not None and found.proposal is not None:
        with atomic_file(config.write) as path:
            path.write_text(starting_config(config, found, found.proposal), encoding="utf-8")
        say(f"to start from: --config {config.write}")
    text = json.dumps(found.facts(), indent=1) if config.json else "\n".join(render(found))
    return Shown(text, found.problems)


def _grid_of(path: Path) -> Grid:
    """Return the grid of a configuration file or a run folder."""
    file = path / "config.yaml" if path.is_dir() else path
    return stage_config(PretrainConfig, "pretrain", file).data.grid


def starting_config(config: InspectConfig, found: Inspection, proposal: Proposal) -> str:
    """Return the YAML that a first run on a data set can start from."""
    labelled = found.labelled_patients
    num_test = min(DataConfig.num_test, max(1, labelled // 4)) if labelled > 1 else 0
    data: dict[str, object] = {
        "root": str(config.root),
        **({"csv": str(config.csv)} if config.csv is not None else {}),
        "layout": found.layout,
        "grid": asdict(proposal.grid),
        "num_test": num_test,
        "num_val": min(DataConfig.num_val, labelled // 8),
    }
    if config.channel:
        data["channel"] = config.channel
    if config.unlabelled_folders:
        data["unlabelled_folders"] = True
    content: dict[str, object] = {"data": data}
    if len(found.label_voxels) > 1:
        content["model"] = {"num_classes": len(found.label_voxels)}
    head = (
        f"# {found.scans} scans of {found.patients} patients, {labelled} of them with masks\n"
        f"# median pixel {proposal.pixel_mm:.3g} mm, foreground of 95 % of the scans within "
        f"{proposal.reach_mm:.0f} mm of the centre\n"
    )
    if proposal.small is not None:
        small = proposal.small
        head += f"# quick start on a CPU: size {small.size}, spacing_mm {small.spacing_mm:g}\n"
    return head + str(yaml.safe_dump(content, sort_keys=False))
