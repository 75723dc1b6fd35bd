"""Entropy minimisation against numpy, at its extremes, and its gradient."""

import numpy as np
import pytest
import torch

from spcl_fast.segmentation.finetune.semi.entropy import EntropyMinimisation


def test_value_by_numpy(make_batch, gradient_norm):
    batch = make_batch()
    value = EntropyMinimisation()(batch)
    x = batch.logits.detach().double().numpy()
    p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(-(p * np.log(p)).sum(1).mean(), rel=1e-5)
    assert gradient_norm(value) > 1e-3


def test_extremes_in_nats(make_batch):
    batch = make_batch()
    batch.logits = torch.zeros(6, 4, 32, 32)
    assert EntropyMinimisation()(batch).item() == pytest.approx(np.log(4))
    sure = make_batch()
    logits = torch.zeros(6, 4, 32, 32)
    logits[:, 2] = 1e4  # the other classes underflow to probability 0
    sure.logits = logits.requires_grad_()
    value = EntropyMinimisation()(sure)
    value.backward()
    assert value.item() == 0
    assert torch.isfinite(logits.grad).all()


def test_descent_makes_the_student_sure(student, make_batch):
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-2)
    values = []
    for _ in range(15):
        value = EntropyMinimisation()(make_batch())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.7 * values[0]
