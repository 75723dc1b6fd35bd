"""What a position label means in pictures: partitions across, patients and phases down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from spcl_fast.segmentation.report import figures
from spcl_fast.segmentation.report.figures import Picture
from spcl_fast.segmentation.report.overlays import read_scan_image
from spcl_fast.segmentation.report.runs import RunRecord

MAX_PATIENTS = 3
MAX_SCANS = 6
CAPTION = (
    "Slices in one column carry the same position label, so they are positives of each other "
    "regardless of patient and phase; rows are scans, with the phases of a patient together. The "
    "label comes from the place in the stack alone: where a column mixes different anatomy, the "
    "label is noisy, which is what the self-paced weights are for."
)


def meta_grid_picture(runs: Sequence[RunRecord], num_partitions: int) -> Picture | None:
    """Draw the middle slice of each position partition, one row per scan.

    Args:
        runs: Evaluated runs.
        num_partitions: Partitions of the slice position.

    Returns:
        The picture, or None if no run is evaluated.

    Raises:
        DataError: If an image cannot be read.
    """
    run = next((run for run in runs if run.evaluation is not None), None)
    if run is None:
        return None
    patients = {name: scan.patient for name, scan in run.scores.scans.items()}
    names = _few_patients(patients)
    figure, axes = figures.panels(
        len(names), num_partitions, width=1.7 * num_partitions + 1.6, height=1.75 * len(names) + 0.3
    )
    for row, name in zip(axes, names, strict=True):
        image, spacing_mm = read_scan_image(run, name)
        low, high = np.percentile(image, (1, 99))
        partition = np.arange(len(image)) * num_partitions // len(image)
        for k, ax in enumerate(row):
            members = np.flatnonzero(partition == k)
            figures.style_image(ax)
            if len(members):
                middle = image[members[len(members) // 2]]
                aspect = spacing_mm[1] / spacing_mm[2]
                ax.imshow(middle, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect)
            for spine in ax.spines.values():
                spine.set_visible(True)
                spine.set_color(figures.COLOURS[k % len(figures.COLOURS)])
                spine.set_linewidth(2)
        row[0].set_ylabel(_row_name(name, patients[name]), fontsize=8.5, color=figures.INK)
    for k, ax in enumerate(axes[0]):
        where = {0: " (base)", num_partitions - 1: " (apex)"}.get(k, "")
        ax.set_title(f"position {k}{where}", fontsize=9.5, color=figures.INK)
    return Picture("Position as a meta-label", CAPTION, figures.to_png(figure))


def _row_name(scan: str, patient: str) -> str:
    rest = scan[len(patient) :].strip("_-") if scan.startswith(patient) else scan
    return f"{patient}\n{rest}" if rest else patient


def _few_patients(patients: Mapping[str, str]) -> list[str]:
    """Return scans of a few patients, so that all phases of a patient stand together.

    Args:
        patients: Name of the patient by name of the scan.
    """
    names = sorted(patients, key=lambda name: (patients[name], name))
    few = list(dict.fromkeys(patients[name] for name in names))[:MAX_PATIENTS]
    return [name for name in names if patients[name] in few][:MAX_SCANS]
