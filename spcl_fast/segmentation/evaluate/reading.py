"""How a run reads its images: what prediction needs to know, in the metadata of its segmenter."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from spcl_fast.segmentation.data.scan import Scan
from spcl_fast.segmentation.evaluate.axes import Turning
from spcl_fast.segmentation.evaluate.record import EVALUATION_FILE, read_evaluation
from spcl_fast.segmentation.runs.run import read_metadata

Channels = Literal["axis", "files"]


@dataclass(frozen=True)
class Reading:
    """How the images of a run are read.

    Attributes:
        class_names: Names of the classes, the background first; None if they are not known.
        channels: As in `Scan`.
        has_frames: The fourth axis of the images is time.
        turning: How other images get the axes of the test images.
    """

    class_names: tuple[str, ...] | None = None
    channels: Channels | None = None
    has_frames: bool = False
    turning: Turning = field(default_factory=Turning)

    @classmethod
    def of_scans(cls, scans: Iterable[Scan]) -> Reading:
        """Return how some scans of one data set are read."""
        scans = list(scans)
        names = {scan.class_names for scan in scans}
        channels = {scan.channels for scan in scans}
        return cls(
            class_names=names.pop() if len(names) == 1 else None,
            channels=channels.pop() if len(channels) == 1 else None,
            has_frames=any(scan.frame is not None and scan.channels is None for scan in scans),
        )

    def metadata(self) -> dict[str, str]:
        """Return the entries of a safetensors file."""
        names = {} if self.class_names is None else {"classes": json.dumps(self.class_names)}
        fourth_axis = "time" if self.has_frames else ""
        return {
            "channels": self.channels or "",
            "fourth_axis": fourth_axis,
            "axis_codes": self.turning.codes or "",
            "stack": "" if self.turning.is_by_size else "third",
            **names,
        }


def reading_of(run: Path) -> Reading:
    """Return how the run in a folder reads its images.

    Raises:
        CheckpointError: It has no readable segmenter.
    """
    metadata = read_metadata(run / "segmenter.safetensors")
    kind = metadata.get("channels")
    channels: Channels | None = "axis" if kind == "axis" else "files" if kind == "files" else None
    return Reading(
        class_names=_class_names(run, metadata),
        channels=channels,
        has_frames=metadata.get("fourth_axis") == "time",
        turning=Turning(
            metadata.get("axis_codes") or None, is_by_size=metadata.get("stack") != "third"
        ),
    )


def _class_names(run: Path, metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    if "classes" in metadata:
        return tuple(map(str, json.loads(metadata["classes"])))
    try:  # runs of earlier versions
        return ("background", *read_evaluation(run / EVALUATION_FILE).classes)
    except (OSError, ValueError):
        return None
