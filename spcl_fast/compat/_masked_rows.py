"""`positive_pair_loss` of the pairs of a mask, by panels of rows, which are computed again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spcl_fast.compat._panels import panels
from spcl_fast.ops import PositivePairLoss
from spcl_fast.ops._function import OpFunction, save, saved
from spcl_fast.pair_weights import Mode, pair_weights
from spcl_fast.precision import at_least_float32, no_autocast


def masked_rows(
    z: Tensor, lse: Tensor, mask: Tensor, tau: float, gamma: float | Tensor, mode: Mode
) -> PositivePairLoss:
    """Return the rows of a mask (B, B) of both views, panel by panel, recomputed backward."""
    z = at_least_float32(z)
    rows = _MaskedRows.apply(z, lse, mask, tau, gamma, mode)  # type: ignore[no-untyped-call]
    return PositivePairLoss(*rows)


class _MaskedRows(OpFunction):
    """`positive_pair_loss` of the pairs of a mask; the weights are constants for the gradient."""

    @staticmethod
    def forward(
        z: Tensor, lse: Tensor, mask: Tensor, tau: float, gamma: float | Tensor, mode: Mode
    ) -> tuple[Tensor, ...]:
        parts = []
        for start, stop in panels(z.shape[0], z.shape[0]):
            loss, weight, num_pos = _masked_panel(start, stop, z, lse, mask, tau, gamma, mode)
            mean = (weight * loss).sum(1) / num_pos.clamp_min(1)
            parts.append((mean, weight.sum(1), num_pos))
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        save(ctx, *inputs)
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, dloss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        z, lse, *options = saved(ctx)
        of_columns = torch.zeros_like(z)
        dz: list[Tensor] = []
        dlse: list[Tensor] = []
        for start, stop in panels(z.shape[0], z.shape[0]):
            weight, num_pos = _masked_panel(start, stop, z, lse, *options)[1:]
            h = weight * (dloss[start:stop] / num_pos.clamp_min(1))[:, None]
            dlse.append(h.sum(1))
            with no_autocast(z.device):
                dz.append(h @ z)
                of_columns = of_columns + h.T @ z[start:stop]
        tau = options[1]
        return (torch.cat(dz) + of_columns) / -tau, torch.cat(dlse), None, None, None, None


def _masked_panel(
    start: int,
    stop: int,
    z: Tensor,
    lse: Tensor,
    mask: Tensor,
    tau: float,
    gamma: float | Tensor,
    mode: Mode,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses and weights (rows, 2 B), 0 where not positive, and the numbers of positives."""
    rows = torch.arange(start, stop, device=z.device)
    positive = mask[rows % mask.shape[0]].repeat(1, 2)
    positive = positive.scatter(1, rows[:, None], False)
    with no_autocast(z.device):
        loss = lse[start:stop, None] - z[start:stop] @ z.T / tau
    weight = torch.where(positive, pair_weights(loss, gamma, mode), 0)
    return torch.where(positive, loss, 0), weight, positive.sum(1)
