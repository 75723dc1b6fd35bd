"""The dense contrastive term: cells of a decoder map against the same cells of the other view.

A map of the decoder is projected and pooled to a grid; of every image some cells are drawn, all in
different rows and columns; the positive of a cell is the same cell of the other view, every other
cell of the batch is a negative (local loss of arXiv:2006.10511, as arXiv:2107.13741 uses it). The
pair weights are those of the encoder's loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from spcl_fast.ops import Impl
from spcl_fast.segmentation.networks import DenseProjectionHead
from spcl_fast.segmentation.pretrain.contrast import ContrastStep, LossConfig, paced_step
from spcl_fast.segmentation.pretrain.views import AlignedViews

DECODER_MAPS = ("up_conv5", "up_conv4", "up_conv3", "up_conv2")  # deep to shallow
CELL = "cell"


@dataclass(frozen=True)
class DenseConfig:
    """The dense contrastive loss on a map of the decoder.

    Attributes:
        map: The decoder's map.
        size: Cells along a side of the grid.
        cells: Cells drawn of each image, at most `size`.
        tau: Temperature.
        pace: As for the loss over meta-labels.
        start: Pace at the first step.
        end: Pace at the last step.
        power: The pace grows with (step / steps) ** power.
        mode: Pair weights: "linear" or "hard".
        impl: Implementation of the loss.
    """

    map: Literal["up_conv5", "up_conv4", "up_conv3", "up_conv2"] = "up_conv3"
    size: int = 10
    cells: int = 5
    tau: float = 0.07
    pace: Literal["none", "absolute", "relative", "quantile"] = "none"
    start: float = 1.2
    end: float = 15.0
    power: float = 0.5
    mode: Literal["linear", "hard"] = "linear"
    impl: Impl = "auto"

    def __post_init__(self) -> None:
        """Check the grid."""
        if not 1 <= self.cells <= self.size:
            raise ValueError(f"cells must be in 1..{self.size} (size), got {self.cells}")

    @property
    def num_blocks(self) -> int:
        """Blocks of the decoder that the map needs."""
        return DECODER_MAPS.index(self.map) + 1

    @property
    def loss(self) -> LossConfig:
        """The loss over the only label, the cell."""
        return LossConfig(
            labels=(CELL,),
            tau=self.tau,
            pace=self.pace,
            start=(self.start,),
            end=(self.end,),
            power=self.power,
            mode=self.mode,
            impl=self.impl,
        )


def make_dense_head(channels: Sequence[int], config: DenseConfig) -> DenseProjectionHead:
    """Return the head for the map of `config`.

    Args:
        channels: Channels of the encoder's maps, shallow to deep; Up_conv(k) has Conv(k - 1)'s.
        config: The dense loss.
    """
    return DenseProjectionHead(channels[-1 - config.num_blocks], size=config.size)


def dense_step(
    decoder_map: Tensor,
    views: AlignedViews,
    head: DenseProjectionHead,
    progress: float,
    config: DenseConfig,
    generator: torch.Generator,
) -> ContrastStep:
    """Return the dense loss of two aligned views.

    Args:
        decoder_map: (2 U, C, h, w), the map of `config.map` of both views.
        views: What the network saw.
        head: From `make_dense_head`.
        progress: Share of the training that is done, 0 to 1; sets the pace.
        config: The dense loss.
        generator: CPU generator; draws the cells.
    """
    with torch.autocast(decoder_map.device.type, enabled=False):
        grids = torch.stack(views.halves(head(decoder_map.float())))  # (2, U, D, size, size)
    cells = draw_cells(grids.shape[1], config, generator).to(grids.device)  # (U, cells)
    index = cells[None, :, None].expand(2, -1, grids.shape[2], -1)
    z = grids.flatten(3).gather(3, index).transpose(2, 3).flatten(0, 2)  # (2 U cells, D)
    label = torch.arange(cells.numel(), device=z.device).repeat(2)
    return paced_step(z, {CELL: label}, progress, config.loss)


def draw_cells(num_images: int, config: DenseConfig, generator: torch.Generator) -> Tensor:
    """Draw (num_images, cells) int64 places in the flattened grid, no two in a row or a column."""
    noise = torch.rand(2, num_images, config.size, generator=generator)
    row, column = noise.argsort(2)[..., : config.cells]
    place: Tensor = row * config.size + column
    return place
