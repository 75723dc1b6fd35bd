"""Bidirectional copy-paste: its boxes, its loss in float64, and whose masks count."""

import copy

import numpy as np
import pytest
import torch

from spcl_fast.segmentation.finetune.semi.copy_paste import CopyPaste, draw_box, region_loss
from spcl_fast.segmentation.finetune.semi.term import Batch, Labelled
from spcl_fast.segmentation.networks import UNet


@pytest.fixture
def teacher():
    torch.manual_seed(9)
    return UNet(1, 4, max_channels=16).eval().requires_grad_(False)


def numpy_loss(logits, target, region):
    """Cross-entropy and soft Dice of the foreground, over the pixels of a region."""
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    p = p.transpose(0, 2, 3, 1)[:, region]
    y = np.eye(p.shape[-1])[target[:, region]]
    dice = [
        (2 * (p[..., k] * y[..., k]).sum() + 1e-5) / (p[..., k].sum() + y[..., k].sum() + 1e-5)
        for k in range(1, p.shape[-1])
    ]
    return -(y * np.log(p)).sum(-1).mean() + 1 - np.mean(dice)


def by_numpy(batch, teacher):
    """The term with the draws that the batch's generator holds next."""
    generator = torch.Generator()
    generator.set_state(batch.generator.get_state())
    first, second = batch.views.images.chunk(2)
    n = min(len(batch.images), len(first))
    chosen = torch.randperm(len(first), generator=generator)[:n]
    y, x = (int(torch.randint(12, (), generator=generator)) for _ in range(2))
    box = np.zeros((32, 32), dtype=bool)
    box[y : y + 21, x : x + 21] = True
    images, masks = batch.images[:n], batch.masks[:n].numpy()
    pseudo = [teacher(v[chosen]).argmax(1).numpy() for v in (first, second)]
    inside = torch.from_numpy(box)
    mixed = torch.cat(
        [torch.where(inside, images, first[chosen]), torch.where(inside, second[chosen], images)]
    )
    logits = batch.student(mixed).detach().numpy()
    targets = np.where(box, masks, pseudo[0]), np.where(box, pseudo[1], masks)
    total = 0.0
    for rows, target, labelled in zip(np.split(logits, 2), targets, (box, ~box), strict=True):
        total += numpy_loss(rows, target, labelled) / 2
        total += 0.5 * numpy_loss(rows, target, ~labelled) / 2
    return total


# more labelled slices than unlabelled, fewer, a single one
@pytest.mark.parametrize(("labelled", "unlabelled"), [(4, 3), (2, 5), (1, 1)])
def test_value_by_numpy(student, teacher, make_batch, gradient_norm, labelled, unlabelled):
    batch = make_batch(labelled, unlabelled)
    twin = Batch(
        copy.deepcopy(student).double(),
        Labelled(batch.images.double(), batch.masks, batch.labelled_logits),
        batch.views._replace(images=batch.views.images.double()),
        *(batch.index, batch.progress, batch.generator),
    )
    expected = by_numpy(twin, copy.deepcopy(teacher).double())
    value = CopyPaste(teacher)(batch)
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-4)
    assert gradient_norm(value) > 1e-3


def test_region_loss_by_hand():
    logits = torch.zeros(1, 2, 1, 3)
    target = torch.tensor([[[0, 1, 0]]])
    region = torch.tensor([[True, True, False]])
    # probabilities 1/2: intersection 1/2, sums 1 + 1, Dice 2 * 1/2 / 2 = 1/2
    assert region_loss(logits, target, region).item() == pytest.approx(np.log(2) + 0.5, rel=1e-4)
    sure = torch.tensor([[[[30.0, -30, 5]], [[-30, 30, 5]]]])
    assert region_loss(sure, target, region).item() == pytest.approx(0, abs=1e-6)


# ACDC's side, one that 3 does not divide, a rectangle
@pytest.mark.parametrize(("height", "width"), [(224, 224), (32, 32), (48, 32)])
def test_boxes_have_two_thirds_of_the_side_and_reach_every_edge(height, width):
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(1, 1, height, width)
    boxes = torch.stack([draw_box(images, generator) for _ in range(1500)])
    rows, columns = boxes.any(2), boxes.any(1)
    assert (rows.sum(1) == 2 * height // 3).all()
    assert (columns.sum(1) == 2 * width // 3).all()
    assert torch.equal(boxes, rows[:, :, None] & columns[:, None, :])
    assert boxes[:, [0, -1], :].any(2).any(0).all()
    assert boxes[:, :, [0, -1]].any(1).any(0).all()
    assert rows.float().argmax(1).float().mean() == pytest.approx(
        (height - 2 * height // 3) / 2, 0.1
    )


def test_masks_count_where_labelled_and_the_teacher_elsewhere(student, teacher, make_batch):
    values = {}
    for change in ("none", "masks", "teacher", "unused masks"):
        batch = make_batch()
        batch.masks = batch.masks.clone()
        constant = 1 if change == "teacher" else 2
        if change == "masks":
            batch.masks[:3] = (batch.masks[:3] + 1) % 4
        if change == "unused masks":
            batch.masks[3] = (batch.masks[3] + 1) % 4  # three unlabelled slices, so three pairs
        values[change] = CopyPaste(Constant(constant))(batch).item()
    assert values["masks"] != pytest.approx(values["none"], abs=1e-4)
    assert values["teacher"] != pytest.approx(values["none"], abs=1e-4)
    assert values["unused masks"] == values["none"]


class Constant(torch.nn.Module):
    """A teacher that sees one class everywhere."""

    def __init__(self, label):
        super().__init__()
        self.label = label

    def forward(self, images):
        assert not torch.is_grad_enabled()
        logits = torch.zeros(len(images), 4, *images.shape[2:])
        logits[:, self.label] = 1
        return logits


def test_teacher_is_neither_owned_nor_changed(student, teacher, make_batch):
    teacher.requires_grad_(True)
    before = copy.deepcopy(teacher.state_dict())
    term = CopyPaste(teacher)
    assert not term.state_dict()
    assert not list(term.trained())
    term.train()
    assert not teacher.training
    term(make_batch()).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None for p in student.parameters())
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_same_draws_same_value(teacher, make_batch):
    term = CopyPaste(teacher)
    assert term(make_batch()).item() == term(make_batch()).item()
    other = make_batch()
    other.generator.manual_seed(5)
    assert term(other).item() != term(make_batch()).item()
