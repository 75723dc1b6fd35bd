"""The supervised loss of the segmenter."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy


def supervised_loss(logits: Tensor, masks: Tensor, dice_weight: float) -> Tensor:
    """Return cross-entropy plus `dice_weight` times the soft Dice loss of the foreground.

    Args:
        logits: (B, K, H, W).
        masks: (B, H, W) int64.
        dice_weight: Weight of the Dice term, which pools the batch and averages the classes.
    """
    loss = cross_entropy(logits, masks)
    if dice_weight == 0:
        return loss
    from monai.losses.dice import DiceLoss

    dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    overlap: Tensor = dice(logits, masks[:, None])
    return loss + dice_weight * overlap
