"""A batch of four labelled slices and two views of three unlabelled ones, side 32."""

import pytest
import torch

from spcl_fast.segmentation.data.augment import AugmentConfig
from spcl_fast.segmentation.finetune.semi.term import Batch, Labelled
from spcl_fast.segmentation.networks import UNet
from spcl_fast.segmentation.pretrain.views import aligned_views

SIDE = 32
NUM_CLASSES = 4


@pytest.fixture
def student():
    torch.manual_seed(0)
    return UNet(1, NUM_CLASSES, max_channels=16)


@pytest.fixture
def make_batch(student):
    """Return equal batches, whose generators are in the same state, at every call."""

    def make(num_labelled=4, num_unlabelled=3, seed=1):
        generator = torch.Generator().manual_seed(seed)
        images = torch.rand(num_labelled, 1, SIDE, SIDE, generator=generator)
        size = (num_labelled, SIDE, SIDE)
        masks = torch.randint(NUM_CLASSES, size, generator=generator)
        unlabelled = torch.rand(num_unlabelled, 1, SIDE, SIDE, generator=generator)
        views = aligned_views(unlabelled, AugmentConfig(), generator)
        index = torch.arange(num_unlabelled).repeat(2)
        labelled = Labelled(images, masks, student(images))
        return Batch(student, labelled, views, index, 0.5, generator)

    return make


@pytest.fixture
def gradient_norm(student):
    """Return the length of the gradient that a value gives the student."""

    def norm(value):
        grads = torch.autograd.grad(value, list(student.parameters()), allow_unused=True)
        return float(torch.stack([g.norm() for g in grads if g is not None]).norm())

    return norm
