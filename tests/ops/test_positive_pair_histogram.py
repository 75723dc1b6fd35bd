"""`positive_pair_histogram`: by hand, and chunked against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spcl_fast import pair_lse, positive_pair_histogram
from spcl_fast.testing import make_embeddings, make_labels

IMPLS: list[Any] = ["reference", "chunked"]
WITH_TRITON: list[Any] = [*IMPLS, "triton"]  # where a few rows in float32 will do


@pytest.mark.parametrize("impl", WITH_TRITON)
def test_by_hand(impl: Any) -> None:
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    lse = torch.tensor([3.25, 4.25, 5.25, 6.0, 7.0])
    labels = torch.tensor([0, 0, 0, 1, -1])
    # pair losses 3.25, 1.25, 4.25, 4.25, 3.25, 5.25; the last lies above the upper end
    counts = positive_pair_histogram(z, lse, labels, tau=0.5, upper=5.0, bins=5, impl=impl)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [0, 1, 0, 2, 3]
    below = positive_pair_histogram(z, lse - 4, labels, tau=0.5, upper=5.0, bins=5, impl=impl)
    assert below.tolist() == [5, 1, 0, 0, 0]


@pytest.mark.parametrize("impl", WITH_TRITON)
def test_nan_is_counted(impl: Any) -> None:
    z, lse = torch.full((3, 2), torch.nan), torch.ones(3)
    labels = torch.zeros(3, dtype=torch.int64)
    counts = positive_pair_histogram(z, lse, labels, tau=1.0, upper=2.0, bins=3, impl=impl)
    assert counts.tolist() == [6, 0, 0]


# Labels of few and many positives, with a window too; references; as many bins as separate pairs.
@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("num_classes", [1, 6, 200])
@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("has_refs", [False, True])
def test_chunked_equals_reference(num_classes: int, window: Any, has_refs: bool) -> None:
    z = make_embeddings(67, 5, dtype=torch.float64)
    labels = make_labels(67, num_classes, unknown_share=0.1)
    options: dict[str, Any] = {"tau": 0.1, "window": window, "bins": 500}
    if has_refs:
        options["refs"] = make_embeddings(20, 5, dtype=torch.float64, seed=1)
        options["ref_labels"] = make_labels(20, num_classes, seed=1)
    lse = pair_lse(z, 0.1)
    for upper in (20.0, torch.tensor(20.0)):
        counts = [
            positive_pair_histogram(z, lse, labels, upper=upper, impl=impl, **options)
            for impl in IMPLS
        ]
        assert torch.equal(counts[0], counts[1])


def bad_calls() -> list[tuple[type[Exception], str, dict[str, Any]]]:
    return [
        (TypeError, "z must be floating", {"z": torch.ones(4, 2).long()}),
        (ValueError, "upper must be finite", {"upper": 0.0}),
        (ValueError, "upper must be a number or a 0-dim", {"upper": torch.ones(1)}),
        (ValueError, "bins must be at least 1", {"bins": 0}),
        (ValueError, "labels must be", {"labels": torch.ones(3).long()}),
        (ValueError, "got refs alone", {"refs": torch.ones(4, 2)}),
        (ValueError, "impl must be one of", {"impl": "fast"}),
    ]


@pytest.mark.parametrize(("error", "message", "change"), bad_calls())
def test_raises(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "z": torch.ones(4, 2),
        "lse": torch.ones(4),
        "labels": torch.zeros(4, dtype=torch.int64),
        "tau": 0.1,
        "upper": 3.0,
    }
    with pytest.raises(error, match=message):
        positive_pair_histogram(**good | change)
