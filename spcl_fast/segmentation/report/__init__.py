"""One self-contained HTML page about the runs below a folder."""

from spcl_fast.segmentation.report.page import write_report

__all__ = ["write_report"]
