"""The mean teacher: what it averages, what it compares, and that it is not trained."""

import math

import torch

from spcl_fast.segmentation.finetune.semi.mean_teacher import MeanTeacher


def test_it_averages_weights_and_buffers(student):
    term = MeanTeacher(student, 0.9)
    term.after_step(student)
    before = term.model.out.bias.clone()
    with torch.no_grad():
        student.out.bias += 1
        student.encoder.blocks[0][1].running_mean += 4
    term.after_step(student)  # second average: decay min(0.9, 1 - 1 / 2)
    assert torch.allclose(term.model.out.bias, before + 0.5)
    mean = term.model.encoder.blocks[0][1].running_mean
    assert torch.allclose(mean, student.encoder.blocks[0][1].running_mean - 2)
    for _ in range(20):
        term.after_step(student)
    old = term.model.out.bias.clone()
    with torch.no_grad():
        student.out.bias += 1
    term.after_step(student)  # the decay has reached 0.9
    assert torch.allclose(term.model.out.bias - old, 0.1 * (student.out.bias - old), atol=1e-6)


def test_value_by_hand(student, make_batch):
    term = MeanTeacher(student, 0.9).train()
    with torch.no_grad():
        student.out.bias += torch.tensor([1.0, 0.0, -1.0, 0.5])
    batch = make_batch()
    assert batch.views.flipped  # else the test says nothing of the mirroring
    first, second = batch.views.images.chunk(2)
    p = student(batch.views.images).softmax(1)[: len(first)]
    with torch.no_grad():
        q = term.model.eval()(second).softmax(1).flip(batch.views.flipped)
    value = term(batch)
    torch.testing.assert_close(value, ((p - q) ** 2).mean())
    assert not term.model.training


def test_the_ramp_by_hand(student, make_batch):
    term = MeanTeacher(student, 0.9, ramp=0.5)
    with torch.no_grad():
        student.out.bias += torch.tensor([1.0, 0.0, -1.0, 0.5])
    batch = make_batch()
    whole = value_at(term, batch, 1.0)
    assert whole > 0
    for progress, t in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0)):
        expected = math.exp(-5 * (1 - t) ** 2) * whole
        torch.testing.assert_close(value_at(term, batch, progress), expected)
    always = MeanTeacher(student, 0.9)
    always.model = term.model
    torch.testing.assert_close(value_at(always, batch, 0.0), whole)


def value_at(term, batch, progress):
    batch.progress = progress
    return term(batch)


def test_the_gradient_is_the_students_alone(student, make_batch, gradient_norm):
    term = MeanTeacher(student, 0.9)
    with torch.no_grad():
        student.out.bias += torch.tensor([1.0, 0.0, -1.0, 0.5])
    assert gradient_norm(term(make_batch())) > 0
    assert list(term.trained()) == []
    assert not any(p.requires_grad for p in term.parameters())
