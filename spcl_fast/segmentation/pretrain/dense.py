"""The dense contrastive term: cells of a decoder map against the same cells of the other view.

A map of the decoder is projected and pooled to a grid. From every image some cells are drawn, all
in different rows and columns; the positive of a cell is the same cell of the other view, and every
other cell of the batch is a negative (local loss of arXiv:2006.10511, as used in arXiv:2107.13741).
The pair weights are those of the encoder's loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spcl_fast.devices import sent_to
from spcl_fast.precision import at_least_float32
from spcl_fast.segmentation.networks import DenseProjectionHead
from spcl_fast.segmentation.pretrain.contrast import ContrastStep, paced_step
from spcl_fast.segmentation.pretrain.loss_config import CELL, DenseConfig
from spcl_fast.segmentation.pretrain.views import AlignedViews
from spcl_fast.segmentation.runs.ranks import ALONE, Rows


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
    rows: Rows | None = None,
) -> ContrastStep:
    """Return the dense loss of two aligned views.

    Args:
        decoder_map: (2 U, C, h, w), the map of `config.map` of both views.
        views: What the network saw.
        head: From `make_dense_head`.
        progress: Share of the training that is done, 0 to 1; sets the pace.
        config: The dense loss.
        generator: CPU generator; draws the cells.
        rows: This rank's part of the batch; the loss is that of the rows of all ranks.
    """
    with torch.autocast(decoder_map.device.type, enabled=False):
        projected = head(at_least_float32(decoder_map))
        grids = torch.stack(views.halves(projected))  # (2, U, D, size, size)
    rows = rows or ALONE.rows(grids.shape[1])
    drawn = draw_cells(rows.of, config, generator)
    place = torch.arange(drawn.numel()).view_as(drawn)
    label, cells = (sent_to(grids.device, rows.take(x)) for x in (place, drawn))  # (U, cells)
    index = cells[None, :, None].expand(2, -1, grids.shape[2], -1)
    z = grids.flatten(3).gather(3, index).transpose(2, 3).flatten(0, 2)  # (2 U cells, D)
    return paced_step(z, {CELL: label.flatten().repeat(2)}, progress, config.loss, rows)


def draw_cells(num_images: int, config: DenseConfig, generator: torch.Generator) -> Tensor:
    """Draw (num_images, cells) int64 cells of the flattened grid, no two in one row or column."""
    noise = torch.rand(2, num_images, config.size, generator=generator)
    row, column = noise.argsort(2)[..., : config.cells]
    place: Tensor = row * config.size + column
    return place
