"""The self-paced weight of a positive pair, the one place that holds the formula.

    hard    w_ij = 1[l_ij <= gamma]
    linear  w_ij = max(0, 1 - l_ij / gamma)

(arXiv:2107.13741.) w minimises w l + R(w) over [0, 1], with R = -gamma w (hard) and
R = gamma (w^2 / 2 - w) (linear). gamma = inf gives w = 1.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from torch import Tensor

Mode = Literal["hard", "linear"]
_MODES = get_args(Mode)  # which Dynamo of torch 2.6 cannot trace

# Far below the rounding of a pair loss, and float32 can divide by it.
MIN_GAMMA = 1e-25


def pair_weights(pair_loss: Tensor, gamma: float | Tensor, mode: Mode) -> Tensor:
    """Return the weight of pairs from their loss.

    Args:
        pair_loss: l_ij = lse_i - sim_ij, any shape, floating.
        gamma: pace, above 0, inf allowed; a 0-dim tensor stays on its device.
        mode: "hard" or "linear".

    Returns:
        w_ij in [0, 1], shape and dtype of `pair_loss`, detached: a weight is a constant for the
        gradient. NaN where gamma is.

    Raises:
        ValueError: `mode` is neither "hard" nor "linear".
    """
    check_mode(mode)
    pair_loss = pair_loss.detach()
    if not isinstance(gamma, Tensor):
        gamma = max(gamma, MIN_GAMMA)
    if mode == "hard":
        weight = (pair_loss <= gamma).to(pair_loss.dtype)
        return weight.masked_fill(gamma.isnan(), math.nan) if isinstance(gamma, Tensor) else weight
    return pair_loss.div(gamma).neg_().add_(1).clamp_(0, 1)  # a loss can round to below 0


def has_unit_weights(gamma: float | Tensor, window: float | None) -> bool:
    """Return whether class sums give the loss: equal labels are positives, of weight 1.

    A gamma on a device is not read, so it counts as finite.
    """
    return isinstance(gamma, float) and gamma == math.inf and window is None


def check_mode(mode: str) -> None:
    """Raise ValueError if `mode` is unknown: a typo must not mean "linear"."""
    if mode not in _MODES:
        raise ValueError(f"mode must be one of {', '.join(_MODES)}, got {mode!r}")
