"""Mix-up of labelled slices against numpy in float64, its extremes, and what it draws."""

import copy

import numpy as np
import pytest
import torch

from spcl_fast.segmentation.finetune.semi.mixup import MixUp


def by_numpy(batch, student):
    """Blend images and one-hot masks with the draws that the batch's generator holds next."""
    generator = torch.Generator()
    generator.set_state(batch.generator.get_state())
    n = len(batch.images)
    share = torch.rand(n, generator=generator).double().numpy()[:, None, None, None]
    partner = torch.randperm(n, generator=generator).numpy()
    images = batch.images.double().numpy()
    onehot = np.eye(4)[batch.masks.numpy()].transpose(0, 3, 1, 2)
    x = share * images + (1 - share) * images[partner]
    y = share * onehot + (1 - share) * onehot[partner]
    logits = student(torch.from_numpy(x)).detach().numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -(y * log_p).sum(1).mean()


@pytest.mark.parametrize("num_labelled", [1, 2, 5])  # with itself, a pair, an odd number
def test_value_by_numpy(student, make_batch, gradient_norm, num_labelled):
    batch = make_batch(num_labelled)
    expected = by_numpy(batch, copy.deepcopy(student).double())
    value = MixUp()(batch)
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert gradient_norm(value) > 1e-3


def test_same_draws_same_value(make_batch):
    assert MixUp()(make_batch()).item() == MixUp()(make_batch()).item()
    other = make_batch()
    other.generator.manual_seed(5)
    assert MixUp()(other).item() != MixUp()(make_batch()).item()


def test_shares_and_partners_vary(make_batch):
    batch, seen = make_batch(), []

    def record(images):
        seen.append(images)
        return torch.zeros(len(images), 4, 32, 32)

    batch.student = record
    batch.images = torch.eye(4)[:, None, :, None].expand(4, 1, 4, 32).contiguous()  # row i marks i
    batch.masks = torch.zeros(4, 32, 32, dtype=torch.int64)
    values = [MixUp()(batch).item() for _ in range(200)]
    assert values == pytest.approx([np.log(4)] * 200)  # uniform predictions, whatever the blend
    blends = torch.stack(seen)[:, :, 0, :, 0]  # (draws, slice, part of each image)
    assert blends.sum(2).allclose(torch.ones(200, 4))
    own = blends.diagonal(dim1=1, dim2=2)
    mixed = own[own < 1]  # the partner is another slice
    assert len(mixed) == pytest.approx(600, abs=80)
    assert mixed.mean() == pytest.approx(0.5, abs=0.05)
    assert mixed.std() == pytest.approx(12**-0.5, abs=0.03)  # of the uniform distribution
    assert (blends[:, 0, 1:] > 0).any(0).all()
