"""Configuration of the comparison of methods, and the folders of its runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spcl_fast.segmentation.commands.methods import METHODS, PAPER_METHODS
from spcl_fast.segmentation.runs.device import Precision

SEEDS = (10, 20, 30, 40, 50, 60, 70, 80, 90, 100)  # the authors' five, and five more
ALL = "all"


@dataclass(frozen=True)
class ReproduceConfig:
    """Run the paper's comparison on a data set and write its table beside ours.

    Attributes:
        dataset: Data set; selects the preset and the paper's numbers.
        root: Folder of the data set.
        out: Folder of the runs and the table.
        protocol: Published split into training, labelled and test scans.
        scale: "paper" is the paper's recipe, for a GPU; "cpu" a small one that takes a night on two
            cores.
        seeds: Number of seeds of the weights, batches and augmentation.
        labelled: Numbers of labelled scans, or "all"; empty means the paper's.
        methods: Rows of the table.
        jobs: Number of concurrent runs.
        threads: CPU threads per run.
        precision: Training precision of the networks; bfloat16 is faster on CPUs that support it.
    """

    dataset: Literal["acdc", "promise12", "mmwhs"]
    root: Path
    out: Path = Path("runs/reproduce")
    protocol: Literal["spcl", "ssl4mis", "chaitanya"] = "spcl"
    scale: Literal["cpu", "paper"] = "cpu"
    seeds: int = 3
    labelled: tuple[str, ...] = ()
    methods: tuple[str, ...] = PAPER_METHODS
    jobs: int = 1
    threads: int = 1
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        """Check the counts and the names."""
        if not 1 <= self.seeds <= len(SEEDS):
            raise ValueError(f"seeds must be 1 to {len(SEEDS)}, got {self.seeds}")
        for name in ("jobs", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for method in self.methods:
            if method not in METHODS:
                raise ValueError(f"methods must be among {', '.join(METHODS)}, got {method!r}")


def encoder_folder(out: Path, encoder: str, seed: int) -> Path:
    """Return the run folder of a pre-training."""
    return out / f"{seed}-encoder-{encoder}"


def method_folder(out: Path, method: str, count: str, seed: int) -> Path:
    """Return the run folder of a fine-tuning."""
    return out / f"{seed}-{count}-{method}"
