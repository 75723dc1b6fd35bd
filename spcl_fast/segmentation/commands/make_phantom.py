"""The phantom on disk, as a public data set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from spcl_fast.segmentation.phantom import PhantomConfig, write_phantom
from spcl_fast.segmentation.runs.progress import progress_bar


@dataclass(frozen=True)
class MakePhantomConfig:
    """Write an anatomical short-axis phantom in the layout of a public data set.

    Attributes:
        root: Folder to write to.
        layout: Data set whose file layout to use.
        num_patients: Number of patients; in a layout without phases each has its ED volume only.
        seed: Random seed.
    """

    root: Path
    layout: Literal["acdc", "promise12", "mmwhs", "msd", "nnunet", "mnms", "ssl4mis"] = "acdc"
    num_patients: int = 24
    seed: int = 0


def make_phantom(config: MakePhantomConfig) -> Path:
    """Write the phantom; return its folder.

    Raises:
        DataError: The folder holds something else.
    """
    phantom = replace(PhantomConfig(), num_patients=config.num_patients, seed=config.seed)
    with progress_bar("phantom", config.num_patients) as show:
        return write_phantom(
            phantom, config.root, config.layout, progress=lambda done, _: show(done, "")
        )
