"""The semi-supervised loss: which terms there are, their weights, their state, bad weights."""

from dataclasses import replace

import pytest
import torch

from spcl_fast.segmentation.data.augment import AugmentConfig
from spcl_fast.segmentation.data.slices import Slices
from spcl_fast.segmentation.finetune.semi.config import TERMS, SemiConfig
from spcl_fast.segmentation.finetune.semi.loss import SemiLoss
from spcl_fast.segmentation.finetune.semi.term import Labelled
from spcl_fast.segmentation.pretrain.loss_config import LossConfig


@pytest.fixture
def slices():
    """Three scans of five slices."""
    scan, index = torch.arange(15) // 5, torch.arange(15) % 5
    images = torch.rand(15, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(15, 32, 32, dtype=torch.uint8)
    return Slices((), images, masks, scan, index, torch.full((15,), 5), {"patient": scan}, {})


def make(student, slices, seed=0, **weights):
    config = SemiConfig(**weights, num_scans=2, loss=LossConfig(projector_batch_norm=True))
    generator = torch.Generator().manual_seed(seed)
    return SemiLoss(student, slices, config, AugmentConfig(), generator)


def step(loss, student):
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(5))
    masks = torch.zeros(4, 32, 32, dtype=torch.int64)
    return loss(student, Labelled(images, masks, student(images)), 0.5)


@pytest.mark.parametrize("name", TERMS)
def test_a_weight_scales_its_term_alone(student, slices, name):
    torch.manual_seed(3)
    one = make(student, slices, **{name: 1.0})
    torch.manual_seed(3)
    two = make(student, slices, **{name: 2.5})
    (value,) = step(one, student).values()
    parts = step(two, student)
    assert list(parts) == [name]
    torch.testing.assert_close(parts[name], 2.5 * value)
    has_teacher = name in ("teacher", "copy_paste")
    assert (one.teacher is not None) == has_teacher


def test_contrast_trains_its_head_and_the_encoder(student, slices):
    loss = make(student, slices, contrast=1.0, dense_contrast=1.0)
    parts = step(loss, student)
    sum(parts.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in student.encoder.parameters())
    assert student.decoder.blocks[0][0].weight.grad.any()
    assert len(loss.trained()) == len(list(loss.terms.parameters()))
    assert all(p.grad is not None for p in loss.trained())


def test_no_weight_no_term(student, slices):
    assert SemiConfig().weights == {}
    assert not make(student, slices).terms


def test_bad_weights():
    with pytest.raises(ValueError, match="entropy must not be negative, got -1"):
        SemiConfig(entropy=-1)
    with pytest.raises(ValueError, match=r"teacher_decay must be in \[0, 1\], got 2"):
        replace(SemiConfig(), teacher_decay=2)
    with pytest.raises(ValueError, match=r"teacher_ramp must be in \[0, 1\], got -0.5"):
        replace(SemiConfig(), teacher_ramp=-0.5)
