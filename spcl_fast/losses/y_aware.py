"""The y-aware contrastive loss: positives weighted by a Gaussian kernel on a continuous label."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from spcl_fast.losses._temperature import Temperature
from spcl_fast.losses.result import ContrastiveLossOutput, collapse_index
from spcl_fast.ops import Impl, pair_lse
from spcl_fast.ops._checks import check_labels, check_rows, positive_number
from spcl_fast.ops._function import OpFunction
from spcl_fast.ops._impl import resolve_for, rows_for
from spcl_fast.precision import accumulator_dtype

PANEL_ROWS = 1024  # rows of the kernel matrix in memory at a time


class YAwareLoss(nn.Module):
    """Contrastive loss in which every pair is a positive, weighted by the distance of its labels.

        k_ij = exp(-(y_i - y_j)^2 / (2 sigma^2))
        L    = mean_i sum_{j != i} k_ij (lse_i - z_i . z_j / tau) / sum_{j != i} k_ij

    (arXiv:2106.08808; both views of an image are among the rows, as everywhere here, and each row
    is normalised by its own sum of k.) Memory is O(N D + 1024 N).

    Example:
        >>> loss = YAwareLoss(sigma=0.1)
        >>> loss(z, position).loss.backward()

    Args:
        tau: temperature.
        sigma: width of the kernel, in units of the label.
        learnable_tau: make log tau a parameter that starts at `tau`.
        impl: implementation of `pair_lse`.

    Raises:
        ValueError: `tau` or `sigma` is not finite and above 0.
    """

    def __init__(
        self,
        tau: float = 0.1,
        sigma: float = 0.1,
        *,
        learnable_tau: bool = False,
        impl: Impl = "auto",
    ) -> None:
        super().__init__()
        self.temperature = Temperature(tau, learnable=learnable_tau)
        self.sigma = positive_number("sigma", sigma)
        self.impl: Impl = impl

    def forward(self, z: Tensor, labels: Tensor) -> ContrastiveLossOutput:
        """Compute the loss.

        Args:
            z: (N, D), floating, rows L2-normalised by the caller.
            labels: (N,), any real dtype, below 0 or not finite where unknown: such a row is a
                negative only. Differences are taken in float64.

        Returns:
            A `ContrastiveLossOutput` whose objective equals the loss and whose weights are 1; its
            loss is differentiable in `z` and a learnable tau.

        Raises:
            TypeError: a dtype does not fit.
            ValueError: a shape or a device does not fit.
        """
        tau = self.temperature()
        check_rows("z", z)
        z, _ = rows_for(resolve_for(self.impl, z), z, None)  # once: gradients add up in float32
        lse = pair_lse(z, tau, impl=self.impl)
        check_labels("labels", labels, z.shape[0], z, window=0)  # which any real dtype may have
        rows = z.to(lse.dtype)
        values = labels.to(accumulator_dtype(z.device))
        centre, has_positives, _ = _KernelMean.apply(rows, values, self.sigma)  # type: ignore[no-untyped-call]
        row_loss = torch.where(has_positives, lse - (rows * centre).sum(1) / tau, 0)
        loss = row_loss.sum() / has_positives.sum().clamp_min(1)
        num_anchors = has_positives.sum()
        weight = (num_anchors > 0).to(loss.dtype)
        collapse = collapse_index(z)
        return ContrastiveLossOutput(
            loss, loss.detach(), weight, num_anchors, collapse, lse.detach(), {}
        )


class _KernelMean(OpFunction):
    """m_i = sum_{j != i} k_ij z_j / sum_{j != i} k_ij by panels; not differentiated in k."""

    @staticmethod
    def forward(z: Tensor, labels: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return m (N, D), (N,) bool: which rows have a positive, and 1 / sum_j k_ij (N,)."""
        panels = [(k.sum(1), k @ z) for k in _panels(labels, sigma, z.dtype)]
        panels = panels or [(z.new_empty(0), z)]
        total, weighted = (torch.cat(column) for column in zip(*panels, strict=True))
        has_positives = total >= torch.finfo(total.dtype).tiny  # the inverse of less is infinite
        scale = torch.where(has_positives, 1 / total, 0)
        return weighted * scale[:, None], has_positives, scale

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Save the labels and the sums, from which k is made again."""
        _, labels, ctx.sigma = inputs
        _, has_positives, scale = output
        ctx.save_for_backward(labels, scale)
        ctx.mark_non_differentiable(has_positives, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        """Return sum_i k_ij grad_i / sum_a k_ia, as k is symmetric."""
        labels, scale = ctx.saved_tensors
        scaled = grad * scale[:, None]
        panels = _panels(labels, ctx.sigma, grad.dtype)
        return torch.cat([k @ scaled for k in panels] or [scaled]), None, None


def _panels(labels: Tensor, sigma: float, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield rows of k (panel, N), with zeros on the diagonal and where a label is unknown."""
    known = (labels >= 0) & labels.isfinite()
    for start in range(0, len(labels), PANEL_ROWS):
        rows = slice(start, start + PANEL_ROWS)
        distance = (labels[rows, None] - labels[None, :]) / sigma
        k = torch.exp(distance.square() * -0.5).to(dtype)
        k = torch.where(known[rows, None] & known[None, :], k, 0)
        k.diagonal(start).zero_()
        yield k
