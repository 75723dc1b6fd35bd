"""The positives of every row, whose denominators hold the negatives alone, by panels of rows.

loss_i = sum_{positives j of i} log(1 + exp(nlse_i - s_ij))
nlse_i = log sum_{negatives a of i} exp(s_ia)      s = z_i . refs_j / tau

The backward computes the panels again.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from spcl_fast.compat._panels import panels
from spcl_fast.ops._function import OpFunction
from spcl_fast.precision import no_autocast


class PositiveRows(OpFunction):
    """The sums of the losses of every row, and how many positives it has."""

    @staticmethod
    def forward(
        z: Tensor, refs: Tensor, y: Tensor, ref_y: Tensor, tau: float, is_square: bool
    ) -> tuple[Tensor, Tensor]:
        parts = []
        with no_autocast(z.device):
            for start, stop in panels(z.shape[0], refs.shape[0]):
                panel = _Panel(_Sides(z, refs, y, ref_y, tau, is_square), start, stop)
                losses = torch.where(panel.positive, softplus(panel.margin, threshold=40), 0)
                parts.append((losses.sum(1), panel.positive.sum(1)))
        total, num_pos = (torch.cat(column) for column in zip(*parts, strict=True))
        return total, num_pos

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.tau, ctx.is_square = inputs
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, dtotal: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        z, refs, y, ref_y = ctx.saved_tensors
        sides = _Sides(z, refs, y, ref_y, ctx.tau, ctx.is_square)
        dz, drefs = [], torch.zeros_like(refs)
        with no_autocast(z.device):
            for start, stop in panels(z.shape[0], refs.shape[0]):
                panel = _Panel(sides, start, stop)
                dsim = panel.gradient(dtotal[start:stop, None]) / ctx.tau
                dz.append(dsim @ refs)
                drefs = drefs + dsim.T @ z[start:stop]
        return torch.cat(dz), drefs, None, None, None, None


class _Sides(NamedTuple):
    """Rows and what they are compared with."""

    z: Tensor  # (N, D)
    refs: Tensor  # (M, D)
    y: Tensor  # (N,)
    ref_y: Tensor  # (M,)
    tau: float
    is_square: bool


class _Panel:
    """Rows [start, stop) of the similarities: which are positive, and nlse_i - s_ij."""

    def __init__(self, sides: _Sides, start: int, stop: int) -> None:
        z, refs, y, ref_y, tau, is_square = sides
        self.sim = z[start:stop] @ refs.T / tau
        same = y[start:stop, None] == ref_y
        self.negative, self.positive = ~same, same
        if is_square:
            rows = torch.arange(start, stop, device=z.device)
            self.positive = same.scatter(1, rows[:, None], False)
        self.nlse = self.sim.masked_fill(same, -math.inf).logsumexp(1)[:, None]
        self.margin = self.nlse - self.sim

    def gradient(self, dtotal: Tensor) -> Tensor:
        """Return the gradient of the similarities from that of the row sums."""
        pull = torch.where(self.positive, dtotal * self.margin.sigmoid(), 0)
        # without negatives there is nothing to share
        p = torch.where(self.negative, self.sim - self.nlse, -math.inf).exp()
        return p * pull.sum(1, keepdim=True) - pull
