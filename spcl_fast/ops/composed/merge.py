"""Results of rows against several sets of references, merged from those against each set."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spcl_fast.operands import PositivePairLoss


def merge_lse(
    parts: Sequence[Tensor],
    *,
    maximum: Callable[[Tensor], Tensor] | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return log sum_k exp(part_k), -inf where all parts are.

    Args:
        parts: (N,) each, floating; -inf where a row has nothing to compare.
        maximum: turns the maximum of these parts, (N,), into that of all parts, if some are on
            other ranks.
        total: the same for the sum of exp(part - maximum); differentiable.

    Returns:
        (N,), differentiable: dpart_k = dlse exp(part_k - lse), 0 where lse is -inf.
    """
    stacked = torch.stack(list(parts))
    shift = stacked.detach().amax(0)
    if maximum is not None:
        shift = maximum(shift)
    shift = torch.where(shift == -math.inf, 0, shift)  # keep -inf - -inf from becoming NaN
    sums = (stacked - shift).exp().sum(0)
    if total is not None:
        sums = total(sums)
    is_empty = sums == 0
    return torch.where(is_empty, -math.inf, shift + torch.where(is_empty, 1, sums).log())


def merge_pairs(parts: Sequence[PositivePairLoss]) -> PositivePairLoss:
    """Return the losses of rows over the positives of all parts: means of means, by number."""
    if len(parts) == 1:
        return parts[0]
    num_pos = torch.stack([part.num_pos for part in parts]).sum(0)
    weight_sum = torch.stack([part.weight_sum for part in parts]).sum(0)
    sums = torch.stack([part.loss * part.num_pos for part in parts]).sum(0)
    return PositivePairLoss(sums / num_pos.clamp_min(1), weight_sum, num_pos)
