"""`MemoryQueue` against a list of the last rows, and `momentum_update` against its formula."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from spcl_fast import InfoNCELoss, SupConLoss
from spcl_fast.memory_queue import MemoryQueue
from spcl_fast.momentum import momentum_update
from spcl_fast.testing import make_embeddings, make_labels


def as_pairs(queue: MemoryQueue) -> list[tuple[float, ...]]:
    labels = queue.labels
    assert isinstance(labels, torch.Tensor)
    table = torch.cat([queue.rows, labels[:, None].float()], 1)
    return sorted(tuple(row) for row in table.tolist())


# Fills exactly, wraps in the middle of a batch, and batches of the size, above it and of no row.
@pytest.mark.parametrize("sizes", [[3, 4], [4, 4, 4], [7, 2], [9], [2, 16, 3], [0, 1], [5, 5, 0]])
def test_keeps_the_last_rows(sizes: list[int], forbid_waiting: Any) -> None:
    queue, z, labels = MemoryQueue(7, 3), make_embeddings(40, 3), make_labels(40, 5)
    expected: list[tuple[float, ...]] = []
    start = 0
    for size in sizes:
        batch = slice(start, start + size)
        with forbid_waiting():
            queue.enqueue(z[batch], labels[batch])
            rows = queue.rows
        new = torch.cat([z[batch], labels[batch, None].float()], 1).tolist()
        expected = (expected + [tuple(row) for row in new])[-7:]
        start += size
        assert len(queue) == len(rows) == len(expected)
        assert as_pairs(queue) == sorted(expected)


def test_state_dict_goes_on_where_it_was() -> None:
    queue, z, labels = MemoryQueue(7, 3), make_embeddings(15, 3), make_labels(15, 5)
    queue.enqueue(z[:5], labels[:5])
    file = io.BytesIO()
    torch.save(queue.state_dict(), file)
    file.seek(0)
    other = MemoryQueue(7, 3)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert len(other) == 5
    for q in (queue, other):
        q.enqueue(z[5:9], labels[5:9])
    assert as_pairs(other) == as_pairs(queue)
    assert len(copy.deepcopy(other)) == 7


def test_several_labels_and_unknown_ones() -> None:
    queue = MemoryQueue(4, 2, label=("position", "patient"), label_dtype=torch.float64)
    queue.enqueue(torch.ones(2, 2), {"patient": torch.tensor([3, 4]), "position": torch.rand(2)})
    queue.enqueue(torch.zeros(1, 2))
    labels = queue.labels
    assert isinstance(labels, dict)
    assert labels["patient"].tolist() == [3, 4, -1]
    assert labels["position"][2] == -1


# -1 is unknown, and a label that the dtype does not hold would become another one.
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.bool])
def test_a_label_dtype_without_a_sign_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="label_dtype must hold -1, for unknown, got"):
        MemoryQueue(4, 2, label_dtype=dtype)


@pytest.mark.parametrize(
    ("label_dtype", "given", "fits"),
    [
        (torch.int8, torch.int64, False),
        (torch.int64, torch.int8, True),
        (torch.int64, torch.uint8, True),
        (torch.int16, torch.bool, True),
        (torch.int64, torch.uint64, False),
        (torch.float32, torch.int64, False),
        (torch.float32, torch.int16, True),
        (torch.float32, torch.float64, False),
        (torch.float64, torch.int64, True),
        (torch.float16, torch.int16, False),
    ],
)
def test_labels_that_do_not_fit(label_dtype: torch.dtype, given: torch.dtype, fits: bool) -> None:
    queue, labels = MemoryQueue(4, 2, label_dtype=label_dtype), torch.tensor([1, 0]).to(given)
    if fits:
        queue.enqueue(torch.ones(2, 2), labels)
        assert torch.as_tensor(queue.labels).tolist() == [1, 0]
        return
    with pytest.raises(TypeError, match=r"labels must be of a dtype that label_dtype, .* holds"):
        queue.enqueue(torch.ones(2, 2), labels)


def test_rows_of_the_queue_itself() -> None:
    z, labels = make_embeddings(5, 3), torch.arange(5)
    queue = MemoryQueue(5, 3)
    queue.enqueue(z, labels)
    own: Any = queue.labels
    queue.enqueue(queue.rows[1:], own[1:])
    assert own.tolist() == [1, 2, 3, 4, 4]
    assert torch.equal(queue.rows, z[[1, 2, 3, 4, 4]])
    queue.enqueue(queue.rows[:3], own[:3])  # around the end
    assert own.tolist() == [2, 3, 3, 4, 1]


def test_info_nce_over_a_queue() -> None:
    anchors, keys = (make_embeddings(6, 4, seed=s, dtype=torch.float64) for s in (0, 1))
    anchors.requires_grad_()
    queue = MemoryQueue(10, 4, dtype=torch.float64)
    loss = InfoNCELoss(0.2, symmetric=False)
    earlier: list[torch.Tensor] = []
    for seed in range(2, 5):  # empty, partly filled, full
        out = loss(anchors, torch.cat([keys, queue.rows]))
        refs = torch.cat([keys, *earlier])
        refs = torch.cat([refs[:6], refs[6:][-10:]])
        expected = cross_entropy(anchors @ refs.T / 0.2, torch.arange(6))
        torch.testing.assert_close(out.loss, expected)
        (gradient,) = torch.autograd.grad(out.loss, anchors)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, anchors)[0])
        earlier.append(make_embeddings(6, 4, seed=seed, dtype=torch.float64))
        queue.enqueue(earlier[-1])


def test_supcon_over_a_queue() -> None:
    z, labels = make_embeddings(6, 4, dtype=torch.float64), make_labels(6, 3)
    queue = MemoryQueue(10, 4, dtype=torch.float64)
    loss: Any = SupConLoss(0.2)
    for seed in range(3):
        out = loss(z, labels, bank=queue.rows, bank_labels=queue.labels)
        refs = torch.cat([z, queue.rows])
        ref_labels = torch.cat([labels, torch.as_tensor(queue.labels)])
        sim = (z @ refs.T / 0.2).masked_fill(torch.eye(6, len(refs), dtype=torch.bool), -torch.inf)
        positive = (labels[:, None] == ref_labels) & (sim > -torch.inf)
        pair_loss = (sim.logsumexp(1)[:, None] - sim).where(positive, 0.0)
        anchors = positive.any(1)
        rows = pair_loss.sum(1)[anchors] / positive.sum(1)[anchors]
        torch.testing.assert_close(out.loss, rows.mean())
        queue.enqueue(
            make_embeddings(6, 4, seed=seed + 1, dtype=torch.float64), make_labels(6, 3, seed=seed)
        )


def test_rows_that_a_graph_holds_are_not_changed_unnoticed() -> None:
    queue = MemoryQueue(4, 2)
    queue.enqueue(make_embeddings(4, 2))
    z = make_embeddings(4, 2, seed=1).requires_grad_()
    loss = InfoNCELoss(symmetric=False)(z, queue.rows).loss
    queue.enqueue(z)
    assert not queue.rows.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_queue_raises() -> None:
    for size, dim in ((0, 2), (2, 0)):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            MemoryQueue(size, dim)
    with pytest.raises(TypeError, match="dtype must be floating"):
        MemoryQueue(2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="label must be None or different names"):
        MemoryQueue(2, 2, label=("a", "a"))
    queue, z = MemoryQueue(4, 2), torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"z must be \(B, 2\), got \(3, 3\)"):
        queue.enqueue(torch.ones(3, 3))
    with pytest.raises(TypeError, match=r"z must be torch\.float32 as the queue"):
        queue.enqueue(z.double())
    with pytest.raises(ValueError, match="z and labels must be on cpu"):
        queue.enqueue(z.to("meta"))
    with pytest.raises(ValueError, match=r"labels must be \(3,\), got \(2,\)"):
        queue.enqueue(z, torch.ones(2).long())
    with pytest.raises(TypeError, match="labels must be integer"):
        queue.enqueue(z, torch.ones(3))
    with pytest.raises(ValueError, match="labels must be a tensor, got a dict of"):
        queue.enqueue(z, {"a": torch.ones(3).long()})
    with pytest.raises(ValueError, match="labels must be a dict of"):
        MemoryQueue(4, 2, label=("a",)).enqueue(z, {"b": torch.ones(3).long()})
    assert len(queue) == 0


def test_momentum_update() -> None:
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    teacher = copy.deepcopy(student).requires_grad_(False)
    for x in student.parameters():
        nn.init.normal_(x)
    student(torch.randn(8, 3))
    before = copy.deepcopy(teacher)
    momentum_update(teacher, student, 0.9)
    values = [{**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (before, student)]
    for name, x in {**dict(teacher.named_parameters()), **dict(teacher.named_buffers())}.items():
        old, new = (value[name].detach() for value in values)
        expected = 0.9 * old + 0.1 * new if x.is_floating_point() else new
        torch.testing.assert_close(x, expected)
        assert not x.requires_grad
    momentum_update(teacher, student, 0.0)
    assert torch.equal(teacher[0].weight, student[0].weight)


def test_momentum_update_raises() -> None:
    one, other = nn.Linear(3, 4), nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\], got 1.5"):
        momentum_update(one, one, 1.5)
    with pytest.raises(ValueError, match=r"teacher must have the names .* other \['weight'\]"):
        momentum_update(one, other, 0.5)
    with pytest.raises(ValueError, match=r"other \['bias'\]"):
        momentum_update(one, nn.Linear(3, 4, bias=False), 0.5)
