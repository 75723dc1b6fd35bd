"""Discrete mutual information: known values, safety at zeros, and the whole term in float64."""

import copy

import numpy as np
import pytest
import torch

from spcl_fast.segmentation.finetune.semi.mutual_information import (
    MAP_WEIGHTS,
    MutualInformation,
    mutual_information,
)
from spcl_fast.segmentation.finetune.semi.term import Batch, Labelled


@pytest.fixture
def term():
    torch.manual_seed(4)
    return MutualInformation(16, 2, 1, num_clusters=3, num_heads=2)


@pytest.mark.parametrize("clusters", [1, 2, 10, 20])  # none, a coin, IIC's, the authors'
def test_matched_balanced_clusters_tell_everything(clusters):
    joint = torch.eye(clusters) / clusters
    assert mutual_information(joint).item() == pytest.approx(np.log(clusters), abs=1e-6)


def test_independent_clusters_tell_nothing():
    p = torch.tensor([0.5, 0.3, 0.2, 0.0])
    assert mutual_information(torch.outer(p, p)).item() == pytest.approx(0, abs=1e-6)


def test_any_joint_by_the_definition():
    joint = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0)) ** 3
    joint = joint / joint.sum((1, 2), keepdim=True)
    for value, matrix in zip(mutual_information(joint), joint.double().numpy(), strict=True):
        assert value.item() == pytest.approx(information(matrix), rel=1e-4)


def information(joint):
    """The definition, in float64."""
    joint = (joint + joint.T) / 2
    return (joint * np.log(joint / np.outer(joint.sum(1), joint.sum(0)))).sum()


def test_gradient_is_finite_at_zeros():
    joint = (torch.eye(4) / 4).requires_grad_()
    mutual_information(joint).backward()
    assert torch.isfinite(joint.grad).all()


def test_heads_that_match_the_views_reach_the_bound(make_batch):
    term = MutualInformation(16, 2, 1, num_clusters=4, num_heads=1)
    batch = make_batch(num_unlabelled=4)
    cluster = torch.arange(4)[:, None, None].expand(4, 8, 8)
    scores = 1e4 * torch.nn.functional.one_hot(cluster, 4).movedim(3, 1).float()
    scores = torch.cat([scores, scores]).requires_grad_()
    value = term._information(scores, batch.views)
    assert value.item() == pytest.approx(np.log(4), rel=1e-6)
    value.backward()
    assert torch.isfinite(scores.grad).all()
    mixed = torch.cat([scores[:4], scores[[4]].expand(4, -1, -1, -1)])  # the second view is blind
    assert term._information(mixed, batch.views).item() < 0.5 * np.log(4)


def by_numpy(term, batch):
    """The whole term, one head, one place and one pair at a time."""
    student = batch.student
    maps = student.encode(batch.views.images)
    decoder = student.decoder(maps)
    p = student.out(decoder[-1]).softmax(1)
    features = (maps[-1].mean((2, 3), keepdim=True), decoder[2], decoder[3])
    mirror = tuple(batch.views.flipped)
    total = np.mean((p[3:].flip(mirror) - p[:3]).detach().numpy() ** 2)
    for head, x, weight in zip(term.heads, features, (0.1, 0.05, 0.05), strict=True):
        scores = head(x).detach()
        scores = torch.cat([scores[:3], scores[3:].flip(mirror)]).numpy()
        for h in range(2):
            e = np.exp(scores[:, 3 * h : 3 * h + 3])
            c = e / e.sum(1, keepdims=True)
            joint = np.zeros((3, 3))
            for u in range(3):
                for y, x_ in np.ndindex(c.shape[2:]):
                    joint += np.outer(c[u, :, y, x_], c[u + 3, :, y, x_])
            total -= weight * information(joint / joint.sum()) / 2
    return total


# the flips that aligned_views can draw: none, one of them, both
@pytest.mark.parametrize("flipped", [(), (2,), (2, 3)])
def test_value_by_numpy(term, student, make_batch, gradient_norm, flipped):
    for head in term.heads:
        head.weight.data *= 20  # else every cluster is as likely everywhere, and I is near 0
    batch = make_batch()
    batch.views = batch.views._replace(flipped=flipped)
    twin = Batch(
        copy.deepcopy(student).double(),
        Labelled(batch.images, batch.masks, batch.labelled_logits),
        batch.views._replace(images=batch.views.images.double()),
        *(batch.index, batch.progress, batch.generator),
    )
    expected = by_numpy(copy.deepcopy(term).double(), twin)
    value = term(batch)
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert gradient_norm(value) > 1e-4


def test_first_view_is_the_target(term, make_batch):
    term.weights = (0.0, 0.0, 0.0)
    batch = make_batch()
    batch.logits = torch.randn(6, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    batch.logits.requires_grad_()
    term(batch).backward()
    first, second = batch.logits.grad.chunk(2)
    assert not first.any()
    assert second.abs().sum() > 0


def test_training_the_heads_and_the_student_raises_the_information(student, term, make_batch):
    term.consistency = 0.0
    assert set(term.trained()) == set(term.parameters())
    assert len(list(term.trained())) == 6
    parameters = [*student.parameters(), *term.trained()]
    optimizer = torch.optim.Adam(parameters, lr=3e-2)
    values = []
    for _ in range(20):
        value = term(make_batch())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert min(values) >= -sum(MAP_WEIGHTS) * np.log(3)
    assert values[-1] < values[0] - 0.02


def test_state_round_trip(term, make_batch):
    other = MutualInformation(16, 2, 1, num_clusters=3, num_heads=2)
    other.load_state_dict(term.state_dict())
    assert other(make_batch()).item() == term(make_batch()).item()


@pytest.mark.parametrize("name", ["num_clusters", "num_heads"])  # the counts there are
def test_counts_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        MutualInformation(16, 2, 1, **{name: 0})
