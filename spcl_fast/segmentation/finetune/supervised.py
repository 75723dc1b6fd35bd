"""The supervised loss of the segmenter."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from spcl_fast.segmentation.data.scan import IGNORED
from spcl_fast.segmentation.runs.ranks import ALONE, Ranks

SMOOTH = 1e-5  # as in MONAI: Dice is 1 for an absent class


def supervised_loss(
    logits: Tensor, masks: Tensor, dice_weight: float, ranks: Ranks = ALONE
) -> Tensor:
    """Return cross-entropy plus `dice_weight` times the soft Dice loss of the foreground.

    Args:
        logits: (B, K, H, W), of this rank's slices.
        masks: (B, H, W) int64; pixels that are IGNORED do not count.
        dice_weight: Weight of the Dice term, which pools the batch and averages the classes.
        ranks: The processes; the loss is that of the slices of all of them.
    """
    is_known = masks != IGNORED
    loss = cross_entropy(logits, masks, ignore_index=IGNORED)
    loss = torch.where(is_known.any(), loss, 0.0)  # the mean of nothing is NaN
    known = is_known.sum().to(loss.dtype)
    loss = ranks.sum(loss * (known / ranks.sum(known).clamp_min(1)))
    if dice_weight == 0:
        return loss
    weight = is_known[:, None].to(logits.dtype)
    classes = torch.arange(logits.shape[1], device=masks.device)[:, None, None]
    truth = (torch.where(is_known, masks, 0)[:, None] == classes).to(logits.dtype) * weight
    p, truth = (logits.softmax(1) * weight)[:, 1:], truth[:, 1:]
    return loss + dice_weight * dice_loss(p, truth, ranks)


def dice_loss(p: Tensor, truth: Tensor, ranks: Ranks) -> Tensor:
    """Return the soft Dice loss, () of the dtype of `p`, over the slices of all ranks.

    Args:
        p: (B, K, H, W) probabilities of the foreground, 0 where a pixel does not count.
        truth: (B, K, H, W) of the same dtype, 1 where a pixel is of the class and counts.
        ranks: The processes.

    Returns:
        The mean over the classes; each is pooled over the batch.
    """
    sums = torch.stack([x.sum((0, 2, 3)) for x in (p * truth, p, truth)])
    overlap, predicted, true = ranks.sum(sums)
    # MONAI's DiceLoss(include_background=False, batch=True), operation by operation
    false_positive, false_negative = predicted - overlap, true - overlap
    false_positive, false_negative = false_positive * 0.5, false_negative * 0.5
    numerator = 2 * overlap + SMOOTH
    dice: Tensor = numerator / (2 * (overlap + false_positive + false_negative) + SMOOTH)
    return (1 - dice).mean()
