"""Ensembles: means of probabilities, answers to mirrored images, largest components."""

import pytest
import torch

from spcl_fast.segmentation.evaluate.ensemble import Ensemble, largest_components
from spcl_fast.segmentation.networks import UNet


@pytest.fixture
def models():
    torch.manual_seed(0)
    return [UNet(1, 3, 16).eval() for _ in range(2)]


@torch.no_grad()
def test_probabilities_are_averaged(models):
    images = torch.rand(2, 1, 32, 48)
    expected = sum(model(images).softmax(1) for model in models) / 2
    torch.testing.assert_close(Ensemble(models)(images), expected)
    assert Ensemble(models).out.out_channels == 3


@torch.no_grad()
def test_flips_make_the_answer_the_same_for_mirrored_images(models):
    images = torch.rand(2, 1, 32, 48)
    plain, flips = Ensemble(models), Ensemble(models, flips=True)
    for axes in ((2,), (3,), (2, 3)):
        mirrored = flips(images.flip(axes)).flip(axes)
        torch.testing.assert_close(mirrored, flips(images))
        assert (plain(images.flip(axes)).flip(axes) - plain(images)).abs().max() > 1e-3


def test_the_largest_component_of_every_class_is_kept():
    labels = torch.zeros(3, 5, 6, dtype=torch.uint8)
    labels[0, 0, :4], labels[2, 4, :2] = 1, 1  # four voxels, and two apart
    labels[:, 2, 3] = 2  # connected across slices
    labels[0, 3, 4] = 2  # touches them at an edge alone
    kept = largest_components(labels)
    expected = labels.clone()
    expected[2, 4, :2], expected[0, 3, 4] = 0, 0
    assert torch.equal(kept, expected)
    assert torch.equal(largest_components(torch.zeros_like(labels)), torch.zeros_like(labels))
