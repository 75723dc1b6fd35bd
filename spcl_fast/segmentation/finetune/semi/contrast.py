"""The contrastive terms of the semi-supervised loss: over meta-labels, and over decoder cells."""

from __future__ import annotations

from torch import Tensor

from spcl_fast.segmentation.data.slices import Slices
from spcl_fast.segmentation.finetune.semi.term import Batch, Term
from spcl_fast.segmentation.networks import UNet
from spcl_fast.segmentation.pretrain.contrast import contrastive_step, label_columns, make_heads
from spcl_fast.segmentation.pretrain.dense import dense_step, make_dense_head
from spcl_fast.segmentation.pretrain.loss_config import DenseConfig, LossConfig


class Contrast(Term):
    """The loss of the pre-training on the encoder's last map.

    Args:
        student: The segmenter, for its width.
        slices: The unlabelled slices, for their meta-labels.
        config: The loss.
    """

    def __init__(self, student: UNet, slices: Slices, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.heads = make_heads(student.channels[-1], config)
        self.columns = label_columns(slices, config)

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of the views."""
        labels = {name: column[batch.index] for name, column in self.columns.items()}
        maps = batch.features[-1]
        progress, rows = batch.progress, batch.rows
        return contrastive_step(maps, labels, self.heads, progress, self.config, rows).loss


class DenseContrast(Term):
    """The dense loss on a map of the decoder.

    Args:
        student: The segmenter, for its widths.
        config: The loss.
    """

    def __init__(self, student: UNet, config: DenseConfig) -> None:
        super().__init__()
        self.config = config
        self.head = make_dense_head(student.channels, config)

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of the views."""
        maps = batch.decoder_maps[self.config.num_blocks - 1]
        config, draw, rows = self.config, batch.generator, batch.rows
        return dense_step(maps, batch.views, self.head, batch.progress, config, draw, rows).loss
