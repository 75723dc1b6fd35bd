"""A picture of a data set: a row per scan, slices in file order, contours of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from spcl_fast.atomic_file import atomic_file
from spcl_fast.segmentation.data.arrays import FloatArray, LabelArray, Spacing
from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.scan import IGNORED, Scan
from spcl_fast.segmentation.data.volume import read_scan
from spcl_fast.segmentation.report import figures

MAX_SCANS = 6
MAX_SLICES = 10
SIDE_INCHES = 1.1


def write_thumbnails(path: Path, scans: Sequence[Scan]) -> None:
    """Draw scans spread evenly over the list, one a row, first slice (the base) to last.

    Slices are spread evenly where there are more than fit; each fills a square in millimetres.

    Args:
        path: PNG file to write; its folder is created.
        scans: at least one scan that can be read; at most 6 are drawn.

    Raises:
        DataError: if a scan cannot be read or the file cannot be written.
    """
    chosen = [scans[i] for i in _spread(len(scans), MAX_SCANS)]
    volumes = [read_scan(scan) for scan in chosen]
    columns = max(min(MAX_SLICES, len(volume.image)) for volume in volumes)
    figure, axes = figures.panels(
        len(chosen),
        1 + columns,
        width=SIDE_INCHES * (1.4 + columns),
        height=SIDE_INCHES * len(chosen) + 0.5,
        dark=True,
        width_ratios=[1.4] + [1.0] * columns,
    )
    for row, scan, volume in zip(axes, chosen, volumes, strict=True):
        for ax in row:
            ax.set_axis_off()
        _label(row[0], scan)
        low, high = (float(value) for value in np.percentile(volume.image, (1, 99)))
        levels = low, max(high, low + 1e-6)
        slices = _spread(len(volume.image), MAX_SLICES)
        for ax, z in zip(row[1:], slices, strict=False):
            _draw(ax, volume.image[z], volume.mask[z], volume.spacing_mm, levels)
            ax.set_title(f"{z + 1}/{len(volume.image)}", fontsize=6, color="#cbd2d9", pad=1)
    _add_legend(axes[-1][0], chosen[0].class_names)
    try:
        with atomic_file(path) as partial:
            partial.write_bytes(figures.to_png(figure))
    except OSError as error:
        raise DataError(f"{path} must be a writable PNG file: {error.strerror}") from error


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` of the numbers 0 to count - 1, ends included."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))


def _label(ax: Axes, scan: Scan) -> None:
    known = [f"phase {scan.phase}"] if scan.phase else []
    lines = [scan.name, *known, *(f"{key} {value}" for key, value in sorted(scan.meta.items()))]
    text = "\n".join(line if len(line) < 22 else f"{line[:20]}.." for line in lines[:5])
    ax.text(0.02, 0.98, text, transform=ax.transAxes, fontsize=6.5, color="white", va="top")


def _draw(
    ax: Axes, image: FloatArray, mask: LabelArray, spacing_mm: Spacing, levels: tuple[float, float]
) -> None:
    _, dy, dx = spacing_mm
    ax.imshow(image, cmap="gray", vmin=levels[0], vmax=levels[1], aspect=dy / dx)
    for number in np.unique(mask).tolist():
        if number not in (0, IGNORED) and min(mask.shape) > 1:
            # a rim of zeros closes contours that leave the slice
            region = np.pad((mask == number).astype(np.float32), 1)
            x, y = np.arange(-1, mask.shape[1] + 1), np.arange(-1, mask.shape[0] + 1)
            ax.contour(x, y, region, levels=[0.5], colors=[_colour(number)], linewidths=0.8)
    ax.set_xlim(-0.5, mask.shape[1] - 0.5)
    ax.set_ylim(mask.shape[0] - 0.5, -0.5)


def _colour(number: int) -> str:
    return figures.OTHER_CLASS_COLOURS[(number - 1) % len(figures.OTHER_CLASS_COLOURS)]


def _add_legend(ax: Axes, class_names: Sequence[str]) -> None:
    for number, name in enumerate(class_names[1:8], start=1):
        ax.text(
            *(0.02 + 0.5 * ((number - 1) % 2), 0.02 + 0.12 * ((number - 1) // 2)),
            name[:12],
            transform=ax.transAxes,
            fontsize=6,
            color=_colour(number),
            va="bottom",
        )
