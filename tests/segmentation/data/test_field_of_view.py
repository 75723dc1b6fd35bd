"""What a grid leaves out, and the grid that is proposed."""

from pathlib import Path

import numpy as np
import pytest

from spcl_fast.segmentation.data.field_of_view import (
    Extent,
    extent_of,
    foreground_outside,
    propose_grid,
)
from spcl_fast.segmentation.data.geometry import Geometry
from spcl_fast.segmentation.data.grid import Grid
from spcl_fast.segmentation.data.scan import IGNORED
from spcl_fast.segmentation.data.volume import Volume


def volume_of(mask, spacing_mm=(8.0, 2.0, 1.0)):
    geometry = Geometry(Path("a"), mask.shape[::-1], spacing_mm[::-1], np.eye(4))
    image = np.zeros(mask.shape, np.float32)
    return Volume(image, mask.astype(np.uint8), spacing_mm, np.eye(4), geometry)


def test_extent_and_what_lies_outside():
    mask = np.zeros((2, 20, 40), np.uint8)  # 40 mm x 40 mm
    assert extent_of(volume_of(mask)) == Extent(1.5, 20.0, False)
    mask[:] = IGNORED
    assert not extent_of(volume_of(mask)).has_foreground
    mask[0, 9, 20:28] = 1  # rows to 2 mm, columns to 8 mm from the centre
    assert extent_of(volume_of(mask)) == Extent(1.5, 8.0, True)
    mask[1, 14] = 1  # a whole row: 10 mm from the centre, columns to the border
    assert extent_of(volume_of(mask)) == Extent(1.5, 20.0, True)
    assert foreground_outside(volume_of(mask), Grid(32, 1.0)) == 8  # 4 columns at either side


def test_the_proposed_grid_holds_the_foreground():
    found = propose_grid([Extent(1.5625, 60.0, True), Extent(1.4, 50.0, True)])
    assert (found.pixel_mm, found.reach_mm) == (pytest.approx(1.48125), 60.0)
    assert found.grid == Grid(96, 1.5)  # 126 mm with the margin are 84 pixels
    assert found.small == Grid(64, 2.0)
    assert propose_grid([Extent(1.0, 24.0, True)]).small is None
    fine = propose_grid([Extent(0.3, 100.0, True)])
    assert fine.grid == Grid(256, 0.83)  # 210 mm
    unlabelled = [Extent(1.0, 100.0, False)]
    assert propose_grid([Extent(1.0, 24.0, True), *unlabelled]).reach_mm == 24.0
    assert propose_grid(unlabelled).reach_mm == 100.0
    far = [Extent(1.0, 30.0, True)] * 39 + [Extent(1.0, 200.0, True)]
    assert propose_grid(far).reach_mm == 30.0  # of 95 % of the scans
