"""`positive_pair_loss`: by hand, the reference against a double loop, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from spcl_fast import pair_lse, positive_pair_loss
from spcl_fast.testing import (
    make_embeddings,
    make_labels,
)

IMPLS = ["reference", "chunked"]


WITH_TRITON = [*IMPLS, "triton"]  # where a few rows in float32 will do


MODES = ["hard", "linear"]


@pytest.mark.parametrize("impl", WITH_TRITON)
def test_by_hand(impl: Any) -> None:
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    lse = torch.tensor([3.0, 4.0, 5.0, 6.0, 7.0])
    labels = torch.tensor([0, 0, 0, 1, -1])
    # tau = 0.5: s_01 = 0, s_02 = 2, s_12 = 0, so l_01 = 3, l_02 = 1, l_10 = 4, l_12 = 4,
    # l_20 = 3, l_21 = 5
    hard = positive_pair_loss(z, lse, labels, tau=0.5, gamma=3.0, mode="hard", impl=impl)
    assert hard.loss.tolist() == [2.0, 0.0, 1.5, 0.0, 0.0]
    assert hard.weight_sum.tolist() == [2.0, 0.0, 1.0, 0.0, 0.0]
    assert hard.num_pos.tolist() == [2, 2, 2, 0, 0]
    linear = positive_pair_loss(z, lse, labels, tau=0.5, gamma=4.0, mode="linear", impl=impl)
    assert linear.weight_sum.tolist() == [1.0, 0.0, 0.25, 0.0, 0.0]
    assert linear.loss.tolist() == [0.75, 0.0, 0.375, 0.0, 0.0]
    plain = positive_pair_loss(z, lse, labels, tau=0.5, gamma=math.inf, mode="hard", impl=impl)
    assert plain.loss.tolist() == [2.0, 4.0, 4.0, 0.0, 0.0]
    assert plain.weight_sum.tolist() == [2.0, 2.0, 2.0, 0.0, 0.0]


@pytest.mark.parametrize("impl", WITH_TRITON)
def test_window_by_hand(impl: Any) -> None:
    # Exact in float64: 0.5 - 0.25 is a quarter, so the border belongs to the window.
    labels = torch.tensor([0.0, 0.25, 0.5, math.nan, -0.1, 0.875])
    out = positive_pair_loss(
        torch.zeros(6, 2),
        torch.arange(1.0, 7.0),
        labels,
        tau=1.0,
        gamma=math.inf,
        mode="hard",
        window=0.25,
        impl=impl,
    )
    assert out.num_pos.tolist() == [1, 2, 1, 0, 0, 0]
    assert out.loss.tolist() == [1.0, 2.0, 3.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("window", [None, 1])
def test_reference_equals_a_double_loop(mode: Any, window: float | None) -> None:
    z, labels = make_embeddings(9, 3, dtype=torch.float64), make_labels(9, 4, unknown_share=0.2)
    refs, ref_labels = make_embeddings(6, 3, dtype=torch.float64, seed=1), make_labels(6, 4, seed=1)
    lse, tau, gamma = pair_lse(z, 0.3), 0.3, 3.0
    for others, other_labels in ((None, None), (refs, ref_labels)):
        out = positive_pair_loss(
            z,
            lse,
            labels,
            tau=tau,
            gamma=gamma,
            mode=mode,
            window=window,
            refs=others,
            ref_labels=other_labels,
            impl="reference",
        )
        for i in range(9):
            total = weights = count = 0.0
            for j in range(9 if others is None else 6):
                y_i = int(labels[i])
                y_j = int(labels[j] if other_labels is None else other_labels[j])
                if (others is None and i == j) or min(y_i, y_j) < 0:
                    continue
                if y_i != y_j if window is None else abs(y_i - y_j) > window:
                    continue
                loss = float(lse[i]) - float(z[i] @ (z if others is None else others)[j]) / tau
                weight = float(loss <= gamma) if mode == "hard" else max(0.0, 1 - loss / gamma)
                total, weights, count = total + weight * loss, weights + weight, count + 1
            assert out.num_pos[i].item() == count
            assert out.weight_sum[i].item() == pytest.approx(weights, abs=1e-12)
            assert out.loss[i].item() == pytest.approx(total / max(count, 1), abs=1e-12)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_collapsed_embedding_costs_log_of_the_other_rows(impl: Any) -> None:
    z = make_embeddings(1, 8).expand(50, 8)
    out = positive_pair_loss(
        z,
        pair_lse(z, 0.07),
        make_labels(50, 3),
        tau=0.07,
        gamma=math.inf,
        mode="hard",
        window=0,
        impl=impl,
    )
    torch.testing.assert_close(out.loss, torch.full((50,), math.log(49)), rtol=0, atol=4e-6)


def test_mean_loss_is_at_least_the_log_of_the_positives() -> None:
    for seed in range(5):
        z, labels = make_embeddings(60, 4, seed=seed), make_labels(60, 4, seed=seed)
        out = positive_pair_loss(
            z, pair_lse(z, 0.07), labels, tau=0.07, gamma=math.inf, mode="hard"
        )
        assert (out.loss >= out.num_pos.float().log()).all()


@pytest.mark.parametrize("impl", WITH_TRITON)
def test_no_rows(impl: Any) -> None:
    out = positive_pair_loss(
        torch.ones(0, 3),
        torch.ones(0),
        torch.ones(0, dtype=torch.int64),
        tau=0.1,
        gamma=2.0,
        mode="linear",
        impl=impl,
    )
    assert [tuple(x.shape) for x in out] == [(0,), (0,), (0,)]


def bad_calls() -> list[tuple[type[Exception], str, dict[str, Any]]]:
    z, labels = torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)
    refs = {"refs": z, "ref_labels": labels}
    return [
        (TypeError, "z must be floating", {"z": z.long()}),
        (ValueError, "tau must be finite", {"tau": -1.0}),
        (ValueError, "gamma must be above 0", {"gamma": 0.0}),
        (ValueError, "gamma must be above 0", {"gamma": math.nan}),
        (ValueError, "gamma must be a number or a 0-dim", {"gamma": torch.ones(2)}),
        (TypeError, "gamma must be a number", {"gamma": None}),
        (ValueError, "mode must be one of hard, linear", {"mode": "soft"}),
        (ValueError, "window must be finite", {"window": -0.1}),
        (ValueError, "window must be finite", {"window": math.inf}),
        (ValueError, "labels must be .4,", {"labels": labels[:3]}),
        (TypeError, "labels must be integer", {"labels": labels.float()}),
        (TypeError, "labels must be real", {"labels": labels.to(torch.complex64), "window": 1.0}),
        (ValueError, "labels must be on the device", {"labels": labels.to("meta")}),
        (ValueError, "lse must be float32 or float64 .4,", {"lse": torch.ones(3)}),
        (ValueError, "lse must be float32", {"lse": torch.ones(4).half()}),
        (ValueError, "lse must be on the device", {"lse": torch.ones(4, device="meta")}),
        (ValueError, "got refs alone", {"refs": z}),
        (ValueError, "got ref_labels alone", {"ref_labels": labels}),
        (TypeError, "refs must have the dtype", refs | {"refs": z.double()}),
        (ValueError, "ref_labels must be .4,", refs | {"ref_labels": labels[:3]}),
        (TypeError, "ref_labels must be integer", refs | {"ref_labels": labels.float()}),
        (ValueError, "impl must be one of", {"impl": "fast"}),
    ]


@pytest.mark.parametrize(("error", "message", "change"), bad_calls())
def test_raises(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "z": torch.ones(4, 2),
        "lse": torch.ones(4),
        "labels": torch.zeros(4, dtype=torch.int64),
        "tau": 0.1,
        "gamma": 3.0,
        "mode": "linear",
    }
    with pytest.raises(error, match=message):
        positive_pair_loss(**good | change)
