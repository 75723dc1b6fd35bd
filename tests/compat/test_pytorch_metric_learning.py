"""`SupConLoss` and `NTXentLoss` of pytorch-metric-learning against that library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast.compat import _pairs, _panels
from spcl_fast.compat import pytorch_metric_learning as compat
from spcl_fast.testing import make_embeddings, make_labels, similarity_rounding

Check = Callable[..., None]
NAMES = ["SupConLoss", "NTXentLoss"]

LABELS = {
    "classes": make_labels(24, 5) - 1,
    "pairs": torch.arange(12).repeat(2),
    "one class": torch.zeros(24, dtype=torch.int64),
    "all distinct": torch.arange(24),
    "one alone": torch.tensor([7] + [1, 2] * 11 + [2]),
    "floating": make_labels(24, 4).float() / 3,
    "two rows": torch.zeros(2, dtype=torch.int64),
    "one row": torch.zeros(1, dtype=torch.int64),
    "three rows": torch.tensor([0, 0, 1]),
}


@pytest.fixture
def library() -> Any:
    for name in ("losses", "reducers", "distances"):
        pytest.importorskip(f"pytorch_metric_learning.{name}")
    return pytest.importorskip("pytorch_metric_learning")


def losses(name: str, library: Any, tau: float, **options: Any) -> tuple[Any, Any]:
    original = getattr(library.losses, name)(temperature=tau, **options)
    return getattr(compat, name)(temperature=tau, **options), original


# At 0.01 the library's smallest number caps NT-Xent in float32, and its rounding is as large.
@pytest.mark.parametrize("tau", [0.03, 0.1, 5.0])
@pytest.mark.parametrize("norm", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("case", LABELS)
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_library(
    name: str, case: str, tau: float, norm: float, library: Any, assert_same: Check
) -> None:
    labels = LABELS[case]
    ours, theirs = losses(name, library, tau)
    z = make_embeddings(len(labels), 8, norm=norm)
    assert_same(
        lambda z: ours(z, labels), lambda z: theirs(z, labels), z, scale=max(1, 1 / (tau * norm))
    )


# References of the same classes; of others, so no positive; one anchor with one pair of each kind.
REFS = {
    "shared": (LABELS["classes"], make_labels(31, 5, seed=1) - 1),
    "disjoint": (LABELS["classes"], make_labels(31, 5) + 100),
    "some without negatives": (torch.zeros(24), torch.zeros(31)),
    "a pair of each kind": (torch.tensor([3]), torch.tensor([3, 4])),
}


@pytest.mark.parametrize("tau", [0.03, 0.1, 5.0])
@pytest.mark.parametrize("case", REFS)
@pytest.mark.parametrize("name", NAMES)
def test_references(name: str, case: str, tau: float, library: Any, assert_same: Check) -> None:
    labels, ref_labels = REFS[case]
    ours, theirs = losses(name, library, tau)
    z = make_embeddings(len(labels), 8)
    refs = make_embeddings(len(ref_labels), 8, norm=2, seed=1)

    def run(loss: Any) -> Callable[..., Tensor]:
        return lambda z, refs: loss(z, labels, ref_emb=refs, ref_labels=ref_labels)

    assert_same(run(ours), run(theirs), z, refs, scale=1 / tau)


def random_pairs(seed: int, kind: str) -> tuple[Tensor, ...]:
    """Pairs of 24 rows, some of them twice for NT-Xent, or triplets."""
    generator = torch.Generator().manual_seed(seed)
    labels = LABELS["classes"]
    equal = labels[:, None] == labels
    positive = equal.fill_diagonal_(False).nonzero()
    negative = (labels[:, None] != labels).nonzero()
    if kind == "triplets":
        chosen = positive[torch.randperm(len(positive), generator=generator)[:30]]
        other = [negative[negative[:, 0] == a][0, 1] for a in chosen[:, 0]]
        return chosen[:, 0], chosen[:, 1], torch.stack(other)
    positive = positive[torch.randint(len(positive), (20,), generator=generator)]
    negative = negative[torch.randint(len(negative), (60,), generator=generator)]
    if kind == "no positives":
        positive = positive[:0]
    return positive[:, 0], positive[:, 1], negative[:, 0], negative[:, 1]


@pytest.mark.parametrize("kind", ["pairs", "triplets", "no positives"])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", NAMES)
def test_listed_pairs(
    name: str, kind: str, seed: int, library: Any, assert_same: Check, monkeypatch: Any
) -> None:
    monkeypatch.setattr(_pairs, "MAX_ELEMENTS", 100)
    ours, theirs = losses(name, library, 0.1)
    pairs = random_pairs(seed, kind)
    z = make_embeddings(24, 8, seed=seed)
    labels = LABELS["classes"]
    assert_same(lambda z: ours(z, labels, pairs), lambda z: theirs(z, labels, pairs), z, scale=10)


@pytest.mark.parametrize("name", NAMES)
def test_cross_batch_memory(name: str, library: Any) -> None:
    wrapped = [
        library.losses.CrossBatchMemory(loss, embedding_size=8, memory_size=40)
        for loss in losses(name, library, 0.1)
    ]
    for step in range(6):
        results = []
        for memory in wrapped:
            z = make_embeddings(16, 8, seed=step).requires_grad_()
            value = memory(z, make_labels(16, 4, seed=step))
            results.append((value, *torch.autograd.grad(value, z)))
        torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_reducers_and_distances(library: Any, assert_same: Check) -> None:
    labels, z = LABELS["one alone"], make_embeddings(24, 8, norm=0.7)
    reducers, distances = library.reducers, library.distances
    for options in (
        {"reducer": reducers.MeanReducer()},
        {"reducer": reducers.ThresholdReducer(low=2.0)},
        {"distance": distances.CosineSimilarity()},
        {"distance": distances.DotProductSimilarity(normalize_embeddings=False)},
    ):
        for name in NAMES:
            if name == "NTXentLoss" and "Threshold" in type(options.get("reducer")).__name__:
                continue
            ours, theirs = losses(name, library, 0.1, **options)
            assert_same(lambda z: ours(z, labels), lambda z: theirs(z, labels), z, scale=10)  # noqa: B023
    ours, theirs = losses("NTXentLoss", library, 0.1, reducer=reducers.ThresholdReducer(low=2.0))
    pairs = random_pairs(0, "pairs")
    assert_same(lambda z: ours(z, labels, pairs), lambda z: theirs(z, labels, pairs), z, scale=10)
    with pytest.raises(ValueError, match="reducer must be MeanReducer without"):
        ours(z, labels)
    with pytest.raises(ValueError, match="distance must be cosine"):
        compat.SupConLoss(distance=distances.LpDistance())


def test_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, results = LABELS["classes"], []
    for elements in (24 * 100, 24 * 7):
        monkeypatch.setattr(_panels, "PANEL_ELEMENTS", elements)
        z = make_embeddings(24, 8).double().requires_grad_()
        value = compat.NTXentLoss()(z, labels)
        results.append((value, *torch.autograd.grad(value, z)))
    torch.testing.assert_close(results[0], results[1])


def test_a_sharp_temperature_is_exact(library: Any) -> None:
    z, labels = make_embeddings(24, 3), LABELS["classes"]
    for name in NAMES:
        ours, theirs = losses(name, library, 0.01)
        close = {"rtol": 1e-5, "atol": similarity_rounding(1 / 0.01)}
        torch.testing.assert_close(ours(z, labels).double(), theirs(z.double(), labels), **close)


@pytest.mark.usefixtures("no_host_values")
@pytest.mark.parametrize("name", NAMES)
def test_nothing_waits_for_the_device(name: str, forbid_waiting: Any) -> None:
    z = make_embeddings(24, 8).requires_grad_()
    loss = getattr(compat, name)(impl="chunked")
    with forbid_waiting():
        loss(z, LABELS["classes"])
        loss(z, LABELS["classes"], ref_emb=z.detach(), ref_labels=LABELS["classes"].clone())


def test_raises() -> None:
    z, labels = torch.eye(4), torch.arange(4)
    loss = compat.SupConLoss()
    for message, arguments in {
        "labels or indices_tuple must be given": {},
        r"labels must be \(4,\)": {"labels": torch.arange(5)},
        r"ref_labels must be \(2,\)": {"labels": labels, "ref_emb": z[:2], "ref_labels": labels},
        "ref_labels must be given with ref_emb": {"labels": labels, "ref_emb": z.clone()},
        "indices_tuple must hold 3 or 4": {"indices_tuple": (labels, labels)},
        "indices_tuple must hold a pair as": {"indices_tuple": (labels, labels, labels, labels)},
    }.items():
        with pytest.raises(ValueError, match=message):
            loss(z, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="embedding_regularizer must be left at its default"):
        compat.NTXentLoss(embedding_regularizer=object())
