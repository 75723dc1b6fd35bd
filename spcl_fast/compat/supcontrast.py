"""`SupConLoss` of HobbitLong/SupContrast, in O(N D) memory.

Compared with its `losses.py` as of 2020 to 2023. What differs:

- A row without positives (only possible with one view, or a mask) makes the loss NaN there until
  2023 and counts as 0 since. Here it is left out of the mean; `without_positives` chooses.
- No 1e-9 in the logarithm, which caps the loss of rows far below their own squared length.
- `temperature` must be above 0.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from spcl_fast.compat._labels import class_indices
from spcl_fast.compat._temperature import check_temperature
from spcl_fast.ops import Impl, Label, contrastive_rows, pair_lse
from spcl_fast.ops._checks import check_rows, check_tensor
from spcl_fast.ops._impl import resolve_for, rows_for
from spcl_fast.ops.composed.bank_rows import References, positive_rows
from spcl_fast.ops.composed.merge import merge_lse
from spcl_fast.precision import at_least_float32, no_autocast

WithoutPositives = Literal["exclude", "zero", "nan"]


class SupConLoss(nn.Module):
    """Supervised contrastive loss (arXiv:2004.11362), and SimCLR's without labels.

        L = temperature / base_temperature
            * mean_i (lse_i - sum_j m_ij z_i . z_j / (temperature sum_j m_ij))      j != i

    Example:
        >>> loss = SupConLoss(temperature=0.07)
        >>> loss(features, labels).backward()  # features (B, V, D)

    Args:
        temperature: tau.
        contrast_mode: "all" takes the rows of every view as anchors, "one" those of the first.
        base_temperature: of the factor in front.
        without_positives: what becomes of anchors without positives: "exclude" leaves them out of
            the mean, "zero" counts them as 0, "nan" divides by 0.
        impl: implementation of the ops.

    Raises:
        ValueError: a temperature is not finite and above 0; `without_positives` is not one of the
            three.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        contrast_mode: str = "all",
        base_temperature: float = 0.07,
        *,
        without_positives: WithoutPositives = "exclude",
        impl: Impl = "auto",
    ) -> None:
        super().__init__()
        if without_positives not in get_args(WithoutPositives):
            choices = ", ".join(get_args(WithoutPositives))
            raise ValueError(f"without_positives must be one of {choices}, got {without_positives}")
        check_temperature("temperature", temperature)
        check_temperature("base_temperature", base_temperature)
        self.temperature = temperature
        self.contrast_mode = contrast_mode
        self.base_temperature = base_temperature
        self.without_positives = without_positives
        self.impl: Impl = impl

    def forward(
        self, features: Tensor, labels: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Compute the loss.

        Args:
            features: (B, V, ...), floating, V views of B images, L2-normalised by the caller.
            labels: (B,), of any dtype; equal ones are positive. Without labels and mask the views
                of an image are.
            mask: (B, B), how much image j is a positive of image i; need not be symmetric. The
                products with it are B^2 D multiply-adds more.

        Returns:
            The loss, 0-dim, differentiable in `features`.

        Raises:
            ValueError: `features` has fewer than 3 dimensions, both `labels` and `mask` are given,
                a shape or the mode does not fit.
        """
        for name, x in (("features", features), ("labels", labels), ("mask", mask)):
            if x is not None or name == "features":
                check_tensor(name, x)
        if features.ndim < 3:
            raise ValueError(f"features must be (B, V, ...), got {tuple(features.shape)}")
        if labels is not None and mask is not None:
            raise ValueError("labels and mask must not be given together, got both")
        if self.contrast_mode not in ("all", "one"):
            raise ValueError(f"contrast_mode must be all or one, got {self.contrast_mode!r}")
        B, V = features.shape[:2]
        views = features.flatten(2)
        # All rows of view 0, then of view 1, ...
        z = views.transpose(0, 1).reshape(B * V, views.shape[2])
        check_rows("features", z)
        z, _ = rows_for(resolve_for(self.impl, z), z, None)  # once: gradients add up in float32
        if mask is not None:
            if mask.shape != (B, B):
                raise ValueError(f"mask must be ({B}, {B}), got {tuple(mask.shape)}")
            rows, has_positives = self._by_mask(z, mask.to(z.device), V)
        else:
            if labels is None:
                labels = torch.arange(B, device=z.device)
            if labels.numel() != B:
                raise ValueError(f"labels must be ({B},), got {tuple(labels.shape)}")
            (index,) = class_indices(labels.to(z.device).reshape(-1))
            rows, has_positives = self._by_labels(z, index, V)
        return self._mean(rows, has_positives) * (self.temperature / self.base_temperature)

    def _by_labels(self, z: Tensor, labels: Tensor, V: int) -> tuple[Tensor, Tensor]:
        """Return the loss of every anchor, and whether it has positives."""
        B, tau = labels.shape[0], self.temperature
        if self.contrast_mode == "all" or V == 1:
            label = Label(labels.repeat(V))
            _, (pairs,) = contrastive_rows(z, tau, [label], mode="linear", impl=self.impl)
            return pairs.loss, pairs.num_pos > 0
        others = [References(z[B:], labels.repeat(V - 1))]
        pairs = positive_rows(
            z[:B], tau, self._lse(z, B), Label(labels), others, mode="linear", impl=self.impl
        )
        return pairs.loss, pairs.num_pos > 0

    def _by_mask(self, z: Tensor, mask: Tensor, V: int) -> tuple[Tensor, Tensor]:
        """Return the same from sum_j m_ij z_j, for which the views are summed first."""
        B = mask.shape[0]
        lse = self._lse(z, B)
        z = at_least_float32(z)
        mask = mask.to(z.dtype)
        num_anchors = lse.shape[0] // B
        anchors = z[: lse.shape[0]]
        own = mask.diagonal().repeat(num_anchors)
        with no_autocast(z.device):
            sums = (mask @ z.view(V, B, -1).sum(0)).repeat(num_anchors, 1)
        count = V * mask.sum(1).repeat(num_anchors) - own
        has_positives = count.abs() > 1e-6
        similarity = (anchors * (sums - own[:, None] * anchors)).sum(1) / self.temperature
        rows = lse - similarity / torch.where(has_positives, count, 1)
        return torch.where(has_positives, rows, 0), has_positives

    def _lse(self, z: Tensor, B: int) -> Tensor:
        """Return the log-sum-exp of every anchor over all other rows."""
        if self.contrast_mode == "all" or z.shape[0] == B:
            return pair_lse(z, self.temperature, impl=self.impl)
        inside = pair_lse(z[:B], self.temperature, impl=self.impl)
        across, _ = pair_lse(z[:B], self.temperature, refs=z[B:], impl=self.impl)
        return merge_lse([inside, across])

    def _mean(self, rows: Tensor, has_positives: Tensor) -> Tensor:
        if self.without_positives == "nan":
            return torch.where(has_positives, rows, math.nan).mean()
        if self.without_positives == "zero":
            return rows.mean()
        return rows.sum() / has_positives.sum().clamp_min(1)
