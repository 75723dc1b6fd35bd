"""An HTML page about the runs in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spcl_fast.segmentation.report import write_report


@dataclass(frozen=True)
class ReportConfig:
    """Write an HTML page about the runs in a folder.

    Attributes:
        runs: Folder of run folders.
        output: The page to write; None means report.html in `runs`.
    """

    runs: Path
    output: Path | None = None


def report(config: ReportConfig) -> Path:
    """Write the page; return its path."""
    return write_report(config.runs, config.output or config.runs / "report.html")
