"""Two views of every slice of a batch, for losses that compare them.

Independent views differ in geometry and intensity. Aligned views show the same geometry up to
mirroring, as in the authors' code, so that their maps can be compared cell by cell.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spcl_fast.segmentation.data.augment import (
    AugmentConfig,
    change_intensity,
    draw_affine,
    draw_intensity,
    warp,
)
from spcl_fast.segmentation.runs.ranks import ALONE, Rows

FLIP_PROBABILITY = 0.8  # of each axis, between aligned views; as in the authors' code


class AlignedViews(NamedTuple):
    """Two views of each of U slices that differ in intensity and mirroring.

    Attributes:
        images: (2 U, 1, H, W); rows i and U + i show slice i.
        flipped: Axes (2 for y, 3 for x) along which the second half is mirrored.
    """

    images: Tensor
    flipped: tuple[int, ...]

    def halves(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps of both views, (U, C, h, w) each, aligned cell by cell.

        Args:
            maps: (2 U, C, h, w), output of a convolutional network for `images`.
        """
        first, second = maps.chunk(2)
        return first, second.flip(self.flipped)


def independent_views(
    images: Tensor, config: AugmentConfig, generator: torch.Generator, rows: Rows | None = None
) -> Tensor:
    """Return (2 U, 1, H, W) views of images (U, 1, H, W); rows i and U + i show image i.

    Args:
        images: Floating point in [0, 1].
        config: Ranges.
        generator: CPU generator; the draws do not depend on the device of images.
        rows: Which slices of a larger batch the images are: the views are those of that batch.
    """
    rows = rows or ALONE.rows(len(images))
    theta = rows.take_views(draw_affine(2 * rows.of, config, generator))
    factors = rows.take_views(draw_intensity(2 * rows.of, config, generator))
    return change_intensity(warp(torch.cat([images, images]), None, theta)[0], factors)


def aligned_views(
    images: Tensor, config: AugmentConfig, generator: torch.Generator, rows: Rows | None = None
) -> AlignedViews:
    """Draw two views that share their geometry up to mirroring.

    Args:
        images: (U, 1, H, W) floating point in [0, 1].
        config: Ranges.
        generator: CPU generator; the draws do not depend on the device of images.
        rows: Which slices of a larger batch the images are: the views are those of that batch.
    """
    rows = rows or ALONE.rows(len(images))
    warped, _ = warp(images, None, rows.take(draw_affine(rows.of, config, generator)))
    factors = rows.take_views(draw_intensity(2 * rows.of, config, generator))
    views = change_intensity(torch.cat([warped, warped]), factors)
    draws = torch.rand(2, generator=generator).tolist()
    flipped = tuple(axis for axis, u in zip((2, 3), draws, strict=True) if u < FLIP_PROBABILITY)
    first, second = views.chunk(2)
    return AlignedViews(torch.cat([first, second.flip(flipped)]), flipped)
