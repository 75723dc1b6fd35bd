"""The two halves of a pre-training step: the network on views, and the losses of its maps.

Each is called once a step, so that several ranks can average its gradients, and so that the network
can run chunk by chunk under the losses of the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spcl_fast.segmentation.networks import DenseProjectionHead, UNetDecoder
from spcl_fast.segmentation.networks.encoders import last_map
from spcl_fast.segmentation.pretrain.config import PretrainConfig
from spcl_fast.segmentation.pretrain.contrast import ContrastStep, contrastive_step
from spcl_fast.segmentation.pretrain.dense import dense_step
from spcl_fast.segmentation.pretrain.views import AlignedViews
from spcl_fast.segmentation.runs.device import autocast
from spcl_fast.segmentation.runs.network import decoder_blocks
from spcl_fast.segmentation.runs.ranks import Rows


class StepBatch(NamedTuple):
    """The views of one step on this rank.

    Attributes:
        views: (2 U, 1, H, W) and how the second half is mirrored.
        labels: (2 U,) of each meta-label.
        progress: Share of the training that is done, 0 to 1.
        rows: This rank's part of the batch.
    """

    views: AlignedViews
    labels: Mapping[str, Tensor]
    progress: float
    rows: Rows


class PretrainNetwork(nn.Module):
    """The encoder and the first blocks of the decoder, in the precision of the run.

    Args:
        encoder: Returns feature maps, of which the last is used.
        decoder: Its first blocks are used where the dense loss is.
        config: The pre-training.
    """

    def __init__(
        self, encoder: nn.Module, decoder: UNetDecoder | None, config: PretrainConfig
    ) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        self._decoder = (decoder,)  # a tuple hides the blocks that are not used from nn.Module
        if decoder is not None and config.dense_weight:
            self.decoder = decoder_blocks(decoder, config.dense.num_blocks)

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        """Return the encoder's last map of the views, and the decoder's map for the dense loss."""
        config = self.config
        with autocast(views.device, config.precision):
            features = self.encoder(views)
            (decoder,) = self._decoder
            if decoder is None or not config.dense_weight:
                return (last_map(features),)
            return features[-1], decoder(features, config.dense.num_blocks)[-1]


class PretrainLosses(nn.Module):
    """The heads and losses of a configuration; a loss without weight has no head here.

    Args:
        heads: From `make_heads`.
        dense_head: From `make_dense_head`; None without the dense loss.
        config: The pre-training.
        generator: CPU generator; draws the cells of the dense loss.
    """

    def __init__(
        self,
        heads: nn.ModuleDict,
        dense_head: DenseProjectionHead | None,
        config: PretrainConfig,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.config, self.generator = config, generator
        self.heads = heads if config.encoder_weight else None
        self.dense_head = dense_head

    def forward(self, maps: tuple[Tensor, ...], batch: StepBatch) -> list[ContrastStep]:
        """Return the weighted losses of the maps of `PretrainNetwork`, the encoder's first."""
        config, (_, labels, progress, rows) = self.config, batch
        parts = []
        if self.dense_head is not None:
            generator = self.generator
            out = dense_step(
                maps[1], batch.views, self.dense_head, progress, config.dense, generator, rows
            )
            parts = [out._replace(loss=config.dense_weight * out.loss)]
        if self.heads is not None:
            out = contrastive_step(
                maps[0], labels, self.heads, progress, config.loss, rows, compiled=config.compile
            )
            parts.insert(0, out._replace(loss=config.encoder_weight * out.loss))
        return parts
