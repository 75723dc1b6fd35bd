"""Paces: schedules of gamma, and the pair weights that follow. Pure functions.

    absolute   gamma = power_schedule(progress, start, end)        the paper's (arXiv:2107.13741)
    relative   gamma = relative_gamma(factor, N)                   independent of the batch size
    quantile   gamma = quantile_gamma(z, lse, labels, share=...)   uses a share of the positives

In a collapsed embedding every pair has the loss log(N - 1): in a large enough batch an absolute
gamma is below that and switches off all pairs. `RelativePace` and `AbsolutePace` are the first two
as objects that count the steps of a training (docs/pace.md).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from spcl_fast.ops import Impl, positive_pair_histogram
from spcl_fast.ops._checks import as_number, check_pairs, positive_number, positive_scalar
from spcl_fast.pair_weights import Mode, pair_weights
from spcl_fast.precision import accumulator_dtype

__all__ = [
    "AbsolutePace",
    "Mode",
    "Pace",
    "RelativePace",
    "pair_weights",
    "power_schedule",
    "quantile_gamma",
    "relative_gamma",
]


def power_schedule(progress: float, start: float, end: float, p: float = 0.5) -> float:
    """Return start + (end - start) progress^p, the paper's schedule of gamma.

    Args:
        progress: completed share of the training, in [0, 1].
        start: value at 0.
        end: value at 1; if one of both is inf, so is what lies between.
        p: exponent, above 0.

    Raises:
        ValueError: `progress` or `p` is out of range.
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must be in [0, 1], got {progress}")
    if not p > 0:
        raise ValueError(f"p must be above 0, got {p}")
    share = progress**p
    if math.isinf(start) or math.isinf(end):  # inf times 0 and inf - inf are NaN
        return float(start if share == 0 else end if share == 1 else start + end)
    return float(start + (end - start) * share)


def relative_gamma(factor: float, num_rows: int) -> float:
    """Return factor * log(num_rows - 1): gamma in units of the loss of a collapsed embedding.

    Args:
        factor: above 0; 1 is the loss of a pair at chance level.
        num_rows: N, at least 3.

    Raises:
        ValueError: an argument is out of range.
    """
    if not factor > 0:
        raise ValueError(f"factor must be above 0, got {factor}")
    if num_rows < 3:
        raise ValueError(f"num_rows must be at least 3, got {num_rows}")
    return factor * math.log(num_rows - 1)


class Pace(nn.Module):
    """A gamma that changes from `start` to `end` in a number of steps, and then stays.

    `SelfPacedContrastiveLoss(pace=...)` takes a step in every call in training mode with gradients.
    The step is part of the state_dict. torch.compile specialises on it: in compiled code pass
    ``gamma=pace.gamma(num_rows)`` as a number, and call `step` yourself.

    Args:
        steps: steps of the training, at least 1.
        start: value at the first step, above 0.
        end: value after the last, above 0.
        power: the value changes with (step / steps) ** power.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is out of range.
    """

    def __init__(self, steps: int, start: float, end: float, power: float = 0.5) -> None:
        super().__init__()
        if not as_number("steps", steps) >= 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        for name, value in (("start", start), ("end", end), ("power", power)):
            positive_number(name, value, finite=False)
        self.steps, self.start, self.end, self.power = steps, start, end, power
        self.done = 0

    def step(self) -> None:
        """Count a step of the training."""
        self.done += 1

    def value(self) -> float:
        """Return the value of this step, between `start` and `end`."""
        progress = min(1.0, self.done / self.steps)
        return power_schedule(progress, self.start, self.end, self.power)

    def gamma(self, num_rows: int) -> float:
        """Return gamma for rows that are compared with `num_rows` - 1 others."""
        raise NotImplementedError

    def get_extra_state(self) -> dict[str, int]:
        """Return the step, for the state_dict."""
        return {"done": self.done}

    def set_extra_state(self, state: Any) -> None:
        """Load what `get_extra_state` returned."""
        self.done = int(state["done"])

    def extra_repr(self) -> str:
        """Return the arguments and the step."""
        schedule = f"start={self.start}, end={self.end}, power={self.power}"
        return f"step {self.done} of {self.steps}, {schedule}"


class AbsolutePace(Pace):
    """The paper's pace: gamma itself goes from `start` to `end`. See `Pace` for the arguments."""

    def gamma(self, num_rows: int) -> float:
        """Return gamma, regardless of the number of rows."""
        return self.value()


class RelativePace(Pace):
    """Gamma in units of log(N - 1), the pair loss of a collapsed embedding.

    The defaults start just above chance, where easy pairs have some weight, and end near plain
    SupCon, in any batch. Every argument but `num_rows` is that of `Pace`.

    Args:
        num_rows: rows N of a batch with those of its bank; None takes those of each call. With a
            process group it must be given, the rows of all ranks.

    Raises:
        TypeError: an argument is not a number.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        steps: int,
        start: float = 1.2,
        end: float = 15.0,
        power: float = 0.5,
        *,
        num_rows: int | None = None,
    ) -> None:
        super().__init__(steps, start, end, power)
        if num_rows is not None and not as_number("num_rows", num_rows) >= 1:
            raise ValueError(f"num_rows must be None or at least 1, got {num_rows}")
        self.num_rows = num_rows

    def gamma(self, num_rows: int) -> float:
        """Return gamma for rows that are compared with `num_rows` - 1 others, at least 2."""
        return relative_gamma(self.value(), max(3, self.num_rows or num_rows))


@torch.no_grad()
def quantile_gamma(
    z: Tensor,
    lse: Tensor,
    labels: Tensor,
    *,
    tau: float | Tensor,
    share: float,
    window: float | None = None,
    bins: int = 4096,
    impl: Impl = "auto",
) -> Tensor:
    """Return the gamma that leaves `share` of the positive pairs with a weight above 0.

    It is the quantile of their losses, interpolated in a histogram of [0, upper], where

        upper = max_i (lse_i + |z_i| max_a |z_a| / tau)

    exceeds every pair loss; the error is below upper / bins. Nothing is copied from the device to
    the host.

    Args:
        z: (N, D), floating.
        lse: (N,), from `pair_lse`.
        labels: (N,), as for `positive_pair_loss`.
        tau: temperature, finite and above 0, or a 0-dim floating tensor on the device of `z`.
        share: in (0, 1].
        window: as for `positive_pair_loss`.
        bins: number of bins of the histogram, at least 1.
        impl: implementation of the histogram.

    Returns:
        0-dim tensor of the dtype of `lse`, above 0, detached; `upper` without any positives.

    Raises:
        TypeError: a dtype does not fit.
        ValueError: a shape, a device or a range does not fit.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    check_pairs(z, lse, labels, window=window, refs=None, ref_labels=None)
    tau = positive_scalar("tau", tau, z, finite=True)
    upper = _largest_pair_loss(z, lse, tau)
    counts = positive_pair_histogram(
        z, lse, labels, tau=tau, upper=upper, bins=bins, window=window, impl=impl
    )
    below = counts.cumsum(0).to(accumulator_dtype(z.device))  # pairs up to the end of each bin
    wanted = share * below[-1:]  # (1,): an index without dimensions would be read by the host
    index = torch.searchsorted(below, wanted).clamp_max(bins - 1)
    in_bin = counts[index]
    inside = 1 - (below[index] - wanted) / in_bin.clamp_min(1)
    gamma = (index + inside) * (upper / bins)
    gamma = gamma.to(lse.dtype).clamp_min(torch.finfo(lse.dtype).tiny)
    return torch.where(wanted > 0, gamma, upper).squeeze(0)


def _largest_pair_loss(z: Tensor, lse: Tensor, tau: float | Tensor) -> Tensor:
    """Return an upper bound of lse_i - z_i . z_j / tau, above 0, 0-dim."""
    norms = torch.linalg.vector_norm(z.to(lse.dtype), dim=1)
    if norms.numel() == 0:
        return lse.new_ones(())
    bound: Tensor = (lse + norms * norms.max() / tau).max()
    return bound.clamp_min(torch.finfo(lse.dtype).tiny)
