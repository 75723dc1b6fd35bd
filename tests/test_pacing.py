"""Paces: the paper's schedule, units of log(N - 1), the quantile against a sort."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from spcl_fast import SelfPacedContrastiveLoss, pair_lse, positive_pair_loss
from spcl_fast.pacing import (
    AbsolutePace,
    Pace,
    RelativePace,
    pair_weights,
    power_schedule,
    quantile_gamma,
    relative_gamma,
)
from spcl_fast.reference import positive_mask
from spcl_fast.testing import make_embeddings, make_labels


def test_power_schedule_by_hand() -> None:
    # position on ACDC in the paper: 5 to 60, square root
    assert power_schedule(0.0, 5, 60) == 5.0
    assert power_schedule(0.25, 5, 60) == 32.5
    assert power_schedule(1.0, 5, 60) == 60.0
    assert power_schedule(0.25, 5, 60, p=1) == 18.75
    assert power_schedule(0.25, 60, 5) == 32.5
    assert [power_schedule(x, 5, math.inf) for x in (0, 0.25, 1)] == [5, math.inf, math.inf]
    assert [power_schedule(x, math.inf, 5) for x in (0, 0.25, 1)] == [math.inf, math.inf, 5]
    assert power_schedule(0.5, math.inf, math.inf) == math.inf


def test_relative_gamma_by_hand() -> None:
    assert relative_gamma(1.5, 65) == pytest.approx(1.5 * math.log(64))


def test_pair_weights_by_hand() -> None:
    losses = torch.tensor([0.0, 1.0, 2.0, 3.0], requires_grad=True)
    assert pair_weights(losses, 2.0, "hard").tolist() == [1, 1, 1, 0]
    assert pair_weights(losses, 2.0, "linear").tolist() == [1, 0.5, 0, 0]
    for gamma in (math.inf, torch.tensor(math.inf)):
        assert pair_weights(losses, gamma, "linear").tolist() == [1, 1, 1, 1]
        assert pair_weights(losses, gamma, "hard").tolist() == [1, 1, 1, 1]
    assert not pair_weights(losses, 2.0, "linear").requires_grad


# Shares from a few pairs to all; a window and classes; the embedding's own scale of losses.
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("window", [None, 0.1])
@pytest.mark.parametrize("tau", [0.07, 1.0])
@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_quantile_gamma(share: float, window: float | None, tau: float, impl: Any) -> None:
    z = make_embeddings(100, 6, dtype=torch.float64)
    labels = torch.rand(100) if window is not None else make_labels(100, 5, unknown_share=0.1)
    lse = pair_lse(z, tau)
    gamma = quantile_gamma(z, lse, labels, tau=tau, share=share, window=window, impl=impl)
    losses = (lse[:, None] - z @ z.T / tau)[positive_mask(labels, None, window)]
    assert gamma.shape == ()
    assert gamma.dtype == torch.float64
    assert (losses < gamma).double().mean().item() == pytest.approx(share, abs=0.02)
    # inside the bin that holds the quantile
    width = (lse.max() + 1 / tau).item() / 4096
    exact = losses.sort().values[math.ceil(share * len(losses)) - 1].item()
    assert abs(gamma.item() - exact) <= width + 1e-12
    out = SelfPacedContrastiveLoss(tau, "hard", window=window)(z, labels, gamma)
    assert out.mean_weight.item() == pytest.approx(share, abs=0.02)


def test_quantile_gamma_without_positives_keeps_every_pair() -> None:
    z = make_embeddings(5, 3)
    lse = pair_lse(z, 0.1)
    gamma = quantile_gamma(z, lse, torch.arange(5), tau=0.1, share=0.5)
    assert gamma.item() >= lse.max().item()
    none = quantile_gamma(z[:0], lse[:0], torch.arange(0), tau=0.1, share=0.5)
    assert none.item() > 0
    alone = quantile_gamma(z[:1], pair_lse(z[:1], 0.1), torch.zeros(1).long(), tau=0.1, share=0.5)
    assert alone.item() > 0


# The share of less than a pair: the pace is above 0 nevertheless.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantile_gamma_of_a_tiny_share(dtype: torch.dtype) -> None:
    z = torch.eye(4, dtype=dtype).repeat_interleave(2, 0)
    labels = torch.arange(4).repeat_interleave(2)
    gamma = quantile_gamma(z, pair_lse(z, 0.05), labels, tau=0.05, share=1e-30)
    assert 0 < gamma.item() < 1e-3


def test_quantile_gamma_interpolates_within_a_bin() -> None:
    # 990 pair losses spread over two of sixteen bins: the bin's end alone is off by half a bin.
    z, labels = make_embeddings(100, 64, dtype=torch.float64), make_labels(100, 10)
    lse = pair_lse(z, 0.2)
    options: dict[str, Any] = {"tau": 0.2, "share": 0.3}
    coarse = quantile_gamma(z, lse, labels, bins=16, **options)
    fine = quantile_gamma(z, lse, labels, bins=1 << 16, **options)
    width = (lse.max() + 1 / 0.2).item() / 16
    assert abs(coarse - fine).item() < 0.2 * width


def test_a_quantile_can_be_handed_on_as_a_tensor() -> None:
    z, labels = make_embeddings(50, 4), make_labels(50, 3)
    lse = pair_lse(z, 0.07)
    gamma = quantile_gamma(z, lse, labels, tau=0.07, share=0.3)
    out = positive_pair_loss(z, lse, labels, tau=0.07, gamma=gamma, mode="linear")
    used = (out.weight_sum > 0).float().mean().item()
    assert 0.3 <= used <= 1.0


def test_raises() -> None:
    z, lse, labels = torch.ones(4, 2), torch.ones(4), torch.zeros(4, dtype=torch.int64)
    bad: list[tuple[str, Any]] = [
        ("progress must be in", lambda: power_schedule(1.01, 1, 2)),
        ("progress must be in", lambda: power_schedule(-0.1, 1, 2)),
        ("p must be above 0", lambda: power_schedule(0.5, 1, 2, p=0)),
        ("factor must be above 0", lambda: relative_gamma(0, 10)),
        ("num_rows must be at least 3", lambda: relative_gamma(1, 2)),
        ("share must be in", lambda: quantile_gamma(z, lse, labels, tau=1, share=0)),
        ("share must be in", lambda: quantile_gamma(z, lse, labels, tau=1, share=1.1)),
        ("bins must be at least 1", lambda: quantile_gamma(z, lse, labels, tau=1, share=1, bins=0)),
        ("labels must be", lambda: quantile_gamma(z, lse, labels[:2], tau=1, share=1)),
        ("mode must be one of", lambda: pair_weights(lse, 1.0, "soft")),  # type: ignore[arg-type]
    ]
    for message, call in bad:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="labels must be integer"):
        quantile_gamma(z, lse, labels.float(), tau=1, share=1)


def make_batch(num_rows: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    z = make_embeddings(num_rows, 8).requires_grad_()
    return z, make_labels(num_rows, 4)


@pytest.mark.parametrize("pace", [RelativePace(4, 1.2, 15.0), AbsolutePace(4, 5.0, 60.0)])
def test_a_pace_steps_with_the_training(pace: Pace) -> None:
    z, labels = make_batch()
    unit = math.log(39) if isinstance(pace, RelativePace) else 1.0
    loss, plain = SelfPacedContrastiveLoss(pace=pace), SelfPacedContrastiveLoss()
    for progress in (0, 0.25, 0.5, 0.75, 1, 1):
        gamma = unit * power_schedule(progress, pace.start, pace.end)
        expected = plain(z, labels, gamma)
        with torch.no_grad():  # of a validation, which is no step
            assert loss(z, labels).loss == expected.loss
        assert loss.eval()(z, labels).loss == expected.loss
        assert loss.train()(z, labels).loss == expected.loss
    restored = SelfPacedContrastiveLoss(pace=type(pace)(4, pace.start, pace.end))
    restored.load_state_dict(loss.state_dict())
    assert restored(z, labels).loss == expected.loss
    assert not list(plain.state_dict())


def test_a_pace_for_each_label_and_a_bank() -> None:
    z, labels = make_batch()
    named = {"a": labels, "b": torch.arange(40) % 3}
    shared = RelativePace(8)
    loss = SelfPacedContrastiveLoss(pace={"a": shared, "b": AbsolutePace(8, 4.0, 9.0)})
    expected = {"a": relative_gamma(1.2, 40), "b": 4.0}
    assert loss(z, named).loss == SelfPacedContrastiveLoss()(z, named, expected).loss
    both = SelfPacedContrastiveLoss(pace={"a": shared, "b": shared})
    both(z, named)
    assert shared.done == 2  # one step a call
    banked = SelfPacedContrastiveLoss(pace=RelativePace(8))
    bank = {"bank": z.detach()[:9], "bank_labels": labels[:9]}
    plain = SelfPacedContrastiveLoss()(z, labels, relative_gamma(1.2, 49), **bank)
    assert banked(z, labels, **bank).loss == plain.loss


def test_paces_that_do_not_fit() -> None:
    z, labels = make_batch()
    with pytest.raises(ValueError, match=r"steps must be at least 1, got 0"):
        RelativePace(0)
    with pytest.raises(ValueError, match=r"start must be above 0, got 0"):
        AbsolutePace(3, 0, 1)
    loss = SelfPacedContrastiveLoss(pace=RelativePace(8))
    with pytest.raises(ValueError, match=r"gamma must be left out of a loss with a pace, got 3"):
        loss(z, labels, 3.0)
    loss(z, labels, float("inf"))  # the default, as another object
    named = SelfPacedContrastiveLoss(pace={"a": RelativePace(8)})
    with pytest.raises(ValueError, match=r"gamma must name the labels \['b'\]"):
        named(z, {"b": labels})


def test_the_log_warns_of_a_gamma_that_switches_off_the_positives() -> None:
    z, labels = make_batch()
    loss = SelfPacedContrastiveLoss()
    out = loss(z, labels, 60.0)
    assert out.for_log() == {k: pytest.approx(getattr(out, k).item()) for k in out._fields[:5]}
    with pytest.warns(UserWarning, match=r"gamma switches off more than 95 % of the positive"):
        loss(z, labels, 0.01).for_log()
    loss(z, torch.arange(40), 0.01).for_log()  # no positives
