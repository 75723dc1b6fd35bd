"""The interface of the terms of the semi-supervised loss, and the batch that they get.

L = L_sup + sum over terms of weight x term(batch)
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spcl_fast.precision import at_least_float32
from spcl_fast.segmentation.networks import UNet
from spcl_fast.segmentation.pretrain.views import AlignedViews
from spcl_fast.segmentation.runs.device import Precision, autocast
from spcl_fast.segmentation.runs.ranks import ALONE, Ranks


class Labelled(NamedTuple):
    """The labelled slices of a step.

    Attributes:
        images: (L, 1, H, W), augmented.
        masks: (L, H, W) int64, their classes.
        logits: (L, K, H, W) float32, the student's, differentiable; of this rank's slices.
    """

    images: Tensor
    masks: Tensor
    logits: Tensor


class Batch:
    """The slices of one step, and the student's maps of them, computed at first use.

    All ranks have the images of the whole batch, since some terms mix slices; the student's maps
    are those of this rank's slices.

    Attributes:
        student: The segmenter in training.
        images, masks, labelled_logits: The labelled slices, see `Labelled`.
        all_views: Two aligned views of U unlabelled slices.
        views: Those of this rank's slices.
        index: (2 U,) int64, the slice that each of `views` shows.
        rows: This rank's part of the unlabelled slices.
        labelled_rows: This rank's part of the labelled slices.
        progress: Share of the training that is done, 0 to 1.
        generator: CPU generator; a term draws every random number from it.
        precision: Precision of the networks, see `spcl_fast.segmentation.runs.device.autocast`.
    """

    def __init__(
        self,
        student: UNet,
        labelled: Labelled,
        views: AlignedViews,
        index: Tensor,
        progress: float,
        generator: torch.Generator,
        precision: Precision = "auto",
        ranks: Ranks = ALONE,
    ) -> None:
        self.student = student
        self.images, self.masks, self.labelled_logits = labelled
        self.ranks, self.labelled_rows = ranks, ranks.rows(len(self.images))
        self.rows = ranks.rows(len(index) // 2)
        self.all_views = views
        self.views = views._replace(images=self.rows.take_views(views.images))
        self.index = self.rows.take_views(index)
        self.progress, self.generator = progress, generator
        self.precision: Precision = precision

    def autocast(self) -> torch.autocast:
        """Return the mixed precision for a network."""
        return autocast(self.images.device, self.precision)

    @cached_property
    def features(self) -> list[Tensor]:
        """The encoder's maps Conv1 to Conv5 of the views, differentiable."""
        with self.autocast():
            return self.student.encode(self.views.images)

    @cached_property
    def decoder_maps(self) -> list[Tensor]:
        """The decoder's maps Up_conv5 to Up_conv2 of the views, differentiable."""
        with self.autocast():
            maps: list[Tensor] = self.student.decoder(self.features)
            return maps

    @cached_property
    def logits(self) -> Tensor:
        """(2 U, K, H, W) float32 logits of the views, differentiable."""
        with self.autocast():
            logits: Tensor = self.student.out(self.decoder_maps[-1])
        return at_least_float32(logits)

    @cached_property
    def probabilities(self) -> Tensor:
        """(2 U, K, H, W) softmax of `logits`."""
        return self.logits.softmax(1)


class Term(nn.Module):
    """One term of the semi-supervised loss.

    ``forward(batch)`` returns its value, () float32, of the slices of all ranks (`Rows.mean`). Its
    state dict is saved with the run and must hold everything that a restart needs.
    """

    def trained(self) -> Iterable[nn.Parameter]:
        """Return the parameters to train together with the segmenter."""
        return self.parameters()

    def after_step(self, student: UNet) -> None:
        """Update the term after an optimiser step."""
