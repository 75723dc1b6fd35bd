"""Pixels that nobody annotated: out of every loss on labelled slices, value and gradient."""

import pytest
import torch

from spcl_fast.segmentation.data.scan import IGNORED
from spcl_fast.segmentation.finetune.semi.copy_paste import region_loss
from spcl_fast.segmentation.finetune.semi.mixup import MixUp
from spcl_fast.segmentation.finetune.supervised import supervised_loss


@pytest.fixture
def logits():
    return torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.fixture
def masks():
    return torch.randint(3, (2, 6, 8), generator=torch.Generator().manual_seed(1))


def in_region(logits, masks, dice_weight):
    return region_loss(logits, masks, torch.ones(6, 8, dtype=torch.bool))


@pytest.mark.parametrize("loss", [supervised_loss, in_region])
def test_only_annotated_pixels_count(logits, masks, loss):
    part = loss(logits[:, :, :, :5], masks[:, :, :5], 1.0) if loss is supervised_loss else None
    masks[:, :, 5:] = IGNORED
    value = loss(logits, masks, 1.0)
    (gradient,) = torch.autograd.grad(value, logits)
    assert torch.equal(gradient[:, :, :, 5:], torch.zeros(2, 3, 6, 3))
    assert float(gradient[:, :, :, :5].abs().min()) > 0
    if part is not None:
        assert value.item() == pytest.approx(part.item(), rel=1e-6)


@pytest.mark.parametrize("loss", [supervised_loss, in_region])
@pytest.mark.parametrize("dice_weight", [0.0, 1.0])
def test_nothing_annotated_at_all(logits, masks, loss, dice_weight):
    value = loss(logits, torch.full_like(masks, IGNORED), dice_weight)
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.isfinite()
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_a_mask_that_is_whole_gives_what_monai_gives(logits, masks):
    from monai.losses.dice import DiceLoss

    dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    expected = torch.nn.functional.cross_entropy(logits, masks) + dice(logits, masks[:, None])
    assert torch.equal(supervised_loss(logits, masks, 1.0), expected)


def test_mixup(make_batch):
    whole, batch = make_batch(2), make_batch(2)
    batch.masks = torch.where(torch.arange(batch.masks.shape[-1]) < 4, batch.masks, IGNORED)
    value = MixUp()(batch)
    assert 0 < value.item() < MixUp()(whole).item()
    batch.masks = torch.full_like(batch.masks, IGNORED)
    assert MixUp()(batch).item() == 0
