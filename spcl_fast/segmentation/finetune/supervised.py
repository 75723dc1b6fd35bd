"""The supervised loss of the segmenter."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from spcl_fast.segmentation.data.scan import IGNORED


def supervised_loss(logits: Tensor, masks: Tensor, dice_weight: float) -> Tensor:
    """Return cross-entropy plus `dice_weight` times the soft Dice loss of the foreground.

    Args:
        logits: (B, K, H, W).
        masks: (B, H, W) int64; pixels that are IGNORED do not count.
        dice_weight: Weight of the Dice term, which pools the batch and averages the classes.
    """
    is_known = masks != IGNORED
    loss = cross_entropy(logits, masks, ignore_index=IGNORED)
    loss = torch.where(is_known.any(), loss, 0.0)  # the mean of nothing is NaN
    if dice_weight == 0:
        return loss
    from monai.losses.dice import DiceLoss
    from monai.networks.utils import one_hot

    weight = is_known[:, None].to(logits.dtype)
    truth = one_hot(torch.where(is_known, masks, 0)[:, None], logits.shape[1]) * weight
    dice = DiceLoss(include_background=False, batch=True)
    overlap: Tensor = dice(logits.softmax(1) * weight, truth)
    return loss + dice_weight * overlap
