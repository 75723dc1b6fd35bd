"""What a data set holds and what is wrong with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from spcl_fast.segmentation.data.inspect import inspect, render
from spcl_fast.segmentation.data.layouts import LayoutName
from spcl_fast.segmentation.data.layouts.layout import Choice


@dataclass(frozen=True)
class InspectConfig:
    """Show what a data set holds and what is wrong with it.

    Attributes:
        root: Folder in one of the layouts; `--root` itself may be omitted.
        csv: Table of further meta-labels.
        layout: Layout of the folder; "auto" detects it.
        thumbnails: PNG file to draw some of the scans to.
        json: Print JSON instead of text.
        channel: Channel of images that have several (Decathlon, nnU-Net), from 0.
        unlabelled_folders: Take the images of folders without labels too, such as imagesTs.
    """

    root: Path
    csv: Path | None = None
    layout: LayoutName = "auto"
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
    """
    choice = Choice(config.channel, config.unlabelled_folders)
    found = inspect(config.root, config.csv, layout=config.layout, choice=choice)
    if config.thumbnails is not None and found.readable:
        from spcl_fast.segmentation.report.thumbnails import write_thumbnails

        write_thumbnails(config.thumbnails, found.readable)
    text = json.dumps(found.facts(), indent=1) if config.json else "\n".join(render(found))
    return Shown(text, found.problems)
