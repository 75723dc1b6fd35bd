"""Bidirectional copy-paste: boxes are exchanged between labelled and unlabelled slices.

    inward    box of a labelled slice in an unlabelled one
    outward   box of an unlabelled slice in a labelled one
    L         = mean over both of  l(labelled pixels) + 0.5 l(unlabelled pixels)
    l         = cross-entropy + soft Dice loss of the foreground, over the pixels of one kind

(arXiv:2305.00673). Labelled pixels keep their masks; unlabelled ones get the mean teacher's
prediction for the whole slice. The box, 2/3 of each side, has the same place in all slices of a
step. Unlike in that paper, a pseudo-label is not reduced to its largest component, and inward
slices show the first view and outward ones the second.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from spcl_fast.devices import sent_to
from spcl_fast.precision import at_least_float32
from spcl_fast.segmentation.data.scan import IGNORED
from spcl_fast.segmentation.finetune.semi.term import Batch, Term
from spcl_fast.segmentation.finetune.supervised import dice_loss
from spcl_fast.segmentation.runs.ranks import ALONE, Rows

PSEUDO_WEIGHT = 0.5  # of the pixels with pseudo-labels


class CopyPaste(Term):
    """Loss of the student on slices with a box of the other kind.

    Args:
        teacher: Returns logits (B, K, H, W) for images (B, 1, H, W). It belongs to the caller: it
            is not a submodule, and is neither trained nor saved here.
    """

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self._teacher = (teacher,)  # a tuple hides it from nn.Module

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss, () float32, of min(L, U) slices in each direction."""
        images, masks = batch.images, batch.masks
        first, second = batch.all_views.images.chunk(2)
        count = min(len(images), len(first))
        drawn = torch.randperm(len(first), generator=batch.generator)[:count]
        chosen = sent_to(images.device, drawn)
        rows = batch.ranks.rows(count)
        images, masks, chosen = (rows.take(x) for x in (images[:count], masks[:count], chosen))
        count = len(rows)
        unlabelled = torch.cat([first[chosen], second[chosen]])
        with torch.no_grad(), batch.autocast():
            pseudo = self._teacher[0](unlabelled).argmax(1)

        inward = draw_box(images, batch.generator)
        is_labelled = torch.stack([inward, ~inward]).repeat_interleave(count, 0)  # (2 count, H, W)
        mixed = torch.where(is_labelled[:, None], images.repeat(2, 1, 1, 1), unlabelled)
        target = torch.where(is_labelled, masks.repeat(2, 1, 1), pseudo)
        with batch.autocast():
            logits = at_least_float32(batch.student(mixed))
        halves = zip(logits.chunk(2), target.chunk(2), (inward, ~inward), strict=True)
        losses = [
            region_loss(x, y, labelled, rows) + PSEUDO_WEIGHT * region_loss(x, y, ~labelled, rows)
            for x, y, labelled in halves
        ]
        return (losses[0] + losses[1]) / 2


def draw_box(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a box of 2/3 of both sides of images (B, C, H, W); return (H, W) bool, True inside."""
    height, width = images.shape[-2:]
    h, w = 2 * height // 3, 2 * width // 3
    y = int(torch.randint(height - h + 1, (), generator=generator))
    x = int(torch.randint(width - w + 1, (), generator=generator))
    box = torch.zeros(height, width, dtype=torch.bool, device=images.device)
    box[y : y + h, x : x + w] = True
    return box


def region_loss(logits: Tensor, target: Tensor, region: Tensor, rows: Rows | None = None) -> Tensor:
    """Return cross-entropy plus the soft Dice loss of the foreground over some pixels.

    Args:
        logits: (B, K, H, W) floating point.
        target: (B, H, W) int64; pixels that are IGNORED do not count.
        region: (H, W) bool, the pixels to evaluate in every slice; at least one.
        rows: This rank's part of the slices; the loss is that of the slices of all ranks.

    Returns:
        (); the Dice loss pools the batch and averages over the classes except the first.
    """
    rows = rows or ALONE.rows(len(logits))
    is_known = target != IGNORED
    target = torch.where(is_known, target, 0)
    weight = (region & is_known).to(logits.dtype)
    share = rows.mean(weight.mean()).clamp_min(torch.finfo(weight.dtype).tiny)
    entropy = rows.mean((cross_entropy(logits, target, reduction="none") * weight).mean()) / share
    p = logits.softmax(1)[:, 1:] * weight[:, None]
    y = one_hot(target, logits.shape[1]).movedim(3, 1)[:, 1:] * weight[:, None]
    return entropy + dice_loss(p, y, rows.ranks)
