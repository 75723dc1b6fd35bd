"""How much of the foreground a grid covers, and a grid that covers nearly all of it.

The grid lies around the centre of the image, so what counts is how far from there the foreground
reaches, in the plane of the slices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spcl_fast.segmentation.data.grid import Grid, covered
from spcl_fast.segmentation.data.scan import IGNORED
from spcl_fast.segmentation.data.volume import Volume

SHARE = 0.95  # of the scans whose foreground a proposed grid holds as a whole
MARGIN = 1.05  # of the reach
MULTIPLE = 16  # the network halves its maps four times
MOST_PIXELS = 256  # along a side; coarser pixels beyond
CPU_PIXELS = 64


@dataclass(frozen=True)
class Extent:
    """The plane of one scan.

    Attributes:
        pixel_mm: Side of a pixel, the mean of rows and columns.
        reach_mm: Distance from the centre of the image to the farthest foreground along an axis,
            or to the border of an image without.
        has_foreground: Which of the two.
    """

    pixel_mm: float
    reach_mm: float
    has_foreground: bool


@dataclass(frozen=True)
class Proposal:
    """Grids that hold the foreground of most scans.

    Attributes:
        grid: With the median pixel, or a coarser one to stay within MOST_PIXELS.
        small: With CPU_PIXELS along a side, for a quick start; None if `grid` has no more.
        pixel_mm: Median pixel of the scans.
        reach_mm: Within it lies the foreground of 95 % of the scans with masks; of all scans the
            border, where there is none.
    """

    grid: Grid
    small: Grid | None
    pixel_mm: float
    reach_mm: float


def is_foreground(mask: Tensor) -> Tensor:
    """Return where a mask holds a class other than the background."""
    return (mask != 0) & (mask != IGNORED)


def foreground_outside(volume: Volume, grid: Grid) -> int:
    """Return the number of foreground voxels that the grid does not cover."""
    _, H, W = volume.mask.shape
    beyond = ~covered((H, W), volume.spacing_mm, grid).numpy()
    return int(is_foreground(torch.from_numpy(volume.mask[:, beyond])).sum())


def extent_of(volume: Volume) -> Extent:
    """Return the extent of the foreground of a volume, or of the volume."""
    _, dy, dx = volume.spacing_mm
    plane = is_foreground(torch.from_numpy(volume.mask)).any(0)  # (H, W)
    has_any = bool(plane.any())
    if not has_any:
        plane = torch.ones_like(plane)
    reaches = []
    for flags, pixel_mm in ((plane.any(1), dy), (plane.any(0), dx)):
        lines, centre = flags.nonzero().flatten().tolist(), len(flags) / 2
        reaches.append(max(centre - lines[0], lines[-1] + 1 - centre) * pixel_mm)
    return Extent((dy + dx) / 2, max(reaches), has_any)


def propose_grid(extents: Sequence[Extent]) -> Proposal:
    """Return grids for scans, at least one."""
    pixel_mm = float(np.median([extent.pixel_mm for extent in extents]))
    known = [extent.reach_mm for extent in extents if extent.has_foreground]
    reaches = known or [extent.reach_mm for extent in extents]
    reach_mm = float(np.quantile(reaches, SHARE, method="higher"))
    width_mm = 2 * MARGIN * reach_mm
    spacing_mm = max(_two_digits(pixel_mm), _rounded_up(width_mm / MOST_PIXELS))
    size = min(MOST_PIXELS, MULTIPLE * math.ceil(width_mm / spacing_mm / MULTIPLE))
    small = Grid(CPU_PIXELS, _rounded_up(width_mm / CPU_PIXELS)) if size > CPU_PIXELS else None
    return Proposal(Grid(size, spacing_mm), small, pixel_mm, reach_mm)


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")


def _rounded_up(value: float) -> float:
    """Return a number of two digits that is not smaller."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return _two_digits(step * math.ceil(value / step - 1e-9))
