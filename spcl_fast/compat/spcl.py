"""`SelfPacedSupConLoss` of the authors of arXiv:2107.13741, in O(N D) memory.

Compared with its formula in `contrastyou/losses/contrast_loss3.py` of
jizongFox/Self-paced-Contrastive-Learning. What differs:

- `downgrade_ratio` is copied to the host when it is read, not in every step, and the dense
  `sp_mask`, `sim_logits`, `sim_exp`, `pos_mask` and `neg_mask` are computed when they are read.
- Rows are not asserted to be normalised, and a NaN loss is returned instead of raised: either
  check would wait for the device.
- A row without positives (only a mask can make one) is left out of the mean, not NaN.
- Entries of a mask other than 1 are negatives; theirs leaves out entries that are neither 0 nor 1.
- No 1e-16 in the logarithm, which caps the loss of rows far below the largest similarity.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spcl_fast.compat._labels import class_indices
from spcl_fast.compat._masked_rows import masked_rows
from spcl_fast.compat._temperature import check_temperature
from spcl_fast.losses.result import label_term
from spcl_fast.ops import (
    Impl,
    Label,
    contrastive_rows,
    contrastive_terms,
    pair_lse,
)
from spcl_fast.ops._checks import check_rows, check_tensor, positive_number, positive_scalar
from spcl_fast.ops._impl import resolve_for, rows_for
from spcl_fast.pair_weights import Mode, pair_weights
from spcl_fast.precision import at_least_float32


class _Last(NamedTuple):
    """What the dense attributes follow from, all detached."""

    z: Tensor  # (2 B, D)
    lse: Tensor
    positive: Tensor  # labels (B,) or mask (B, B)
    gamma: float | Tensor
    ratio: Tensor


class SelfPacedSupConLoss(nn.Module):
    """Self-paced supervised contrastive loss of two views.

    Example:
        >>> loss = SelfPacedSupConLoss(weight_update="soft")
        >>> loss.set_gamma(5.0)
        >>> loss(view1, view2, target=position).backward()
        >>> loss.downgrade_ratio

    Args:
        temperature: tau.
        weight_update: "hard", or anything else for linear weights ("soft").
        correct_grad: divide the loss by the mean weight where that is above 0.
        impl: implementation of the ops.
        kwargs: ignored, as theirs are.

    Raises:
        ValueError: `temperature` is not finite and above 0.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        weight_update: str = "hard",
        correct_grad: bool = False,
        *,
        impl: Impl = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__()
        check_temperature("temperature", temperature)
        self._t = temperature
        self._weight_update = weight_update
        self._correct_grad = correct_grad
        self._gamma = 1e6
        self._last: _Last | None = None
        self.impl: Impl = impl

    def forward(
        self,
        proj_feat1: Tensor,
        proj_feat2: Tensor,
        target: Tensor | list[float] | None = None,
        mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Compute the loss.

        Args:
            proj_feat1: (B, D), floating, rows L2-normalised by the caller.
            proj_feat2: (B, D), the other view.
            target: (B,), equal values are positive; without target and mask the two views of an
                image are.
            mask: (B, B), 1 where image j is a positive of image i; used instead of `target`.
                Costs one more visit of all pairs.
            kwargs: ignored.

        Returns:
            The loss, 0-dim, differentiable in both views.

        Raises:
            TypeError: a view is not floating.
            ValueError: a shape does not fit.
        """
        check_rows("proj_feat1", proj_feat1)
        check_rows("proj_feat2", proj_feat2)
        if proj_feat1.shape != proj_feat2.shape:
            raise ValueError(
                f"proj_feat2 must be {tuple(proj_feat1.shape)} as proj_feat1, "
                f"got {tuple(proj_feat2.shape)}"
            )
        B = proj_feat1.shape[0]
        z = torch.cat([proj_feat1, proj_feat2])
        gamma = positive_scalar("gamma", self._gamma, z, finite=False)
        mode: Mode = "hard" if self._weight_update == "hard" else "linear"
        if mask is not None:
            check_tensor("mask", mask)
            if mask.shape != (B, B):
                raise ValueError(f"mask must be ({B}, {B}), got {tuple(mask.shape)}")
            positive = mask.to(z.device) == 1
            z, _ = rows_for(resolve_for(self.impl, z), z, None)  # once: gradients add up in float32
            lse = pair_lse(z, self._t, impl=self.impl)
            pairs = masked_rows(z, lse, positive, self._t, gamma, mode)
        else:
            target = list(range(B)) if target is None else target
            target = torch.as_tensor(target, device=z.device)
            if target.shape != (B,):
                raise ValueError(f"target must be ({B},), got {tuple(target.shape)}")
            (positive,) = class_indices(target)
            label = Label(positive.repeat(2), gamma)
            options: Any = {"mode": mode, "correct_grad": self._correct_grad, "impl": self.impl}
            terms = contrastive_terms(z, self._t, [label], [1.0], **options)
            if terms is not None:
                self._last = _Last(z.detach(), terms.lse, positive, gamma, terms.mean_weight)
                return terms.loss
            lse, (pairs,) = contrastive_rows(z, self._t, [label], mode=mode, impl=self.impl)
        term = label_term(pairs, gamma, mode, correct_grad=self._correct_grad)
        self._last = _Last(z.detach(), lse.detach(), positive, gamma, term.mean_weight)
        return term.loss

    def set_gamma(self, gamma: float) -> None:
        """Set the pace, above 0; a compiled loss takes another one without another compilation.

        Raises:
            TypeError: `gamma` is not a number.
            ValueError: `gamma` is not above 0.
        """
        self._gamma = positive_number("gamma", gamma, finite=False)

    @property
    def age_param(self) -> float:
        """The pace."""
        return self._gamma

    @property
    def downgrade_ratio(self) -> float:
        """Mean weight of the positive pairs of the last call; waits for the device."""
        return self._seen().ratio.item()

    @property
    def pos_mask(self) -> Tensor:
        """(2 B, 2 B), 1 at the positive pairs of the last call; dense."""
        positive = self._seen().positive
        positive = positive[:, None] == positive if positive.ndim == 1 else positive
        return positive.repeat(2, 2).fill_diagonal_(False).float()

    @property
    def neg_mask(self) -> Tensor:
        """(2 B, 2 B), 1 at the negative pairs of the last call; dense."""
        return (1 - self.pos_mask).fill_diagonal_(0)

    @property
    def sim_logits(self) -> Tensor:
        """(2 B, 2 B), similarities over tau of the last call less their maximum; dense."""
        z = at_least_float32(self._seen().z)
        sim = z @ z.T / self._t
        return sim - sim.max()

    @property
    def sim_exp(self) -> Tensor:
        """(2 B, 2 B), exponentials of `sim_logits`; dense."""
        return self.sim_logits.exp()

    @property
    def sp_mask(self) -> Tensor:
        """(2 B, 2 B), weights of the positive pairs of the last call, 1 elsewhere; dense."""
        last, mode = self._seen(), "hard" if self._weight_update == "hard" else "linear"
        z = at_least_float32(last.z)
        pair_loss = last.lse[:, None] - z @ z.T / self._t
        weight = pair_weights(pair_loss, last.gamma, mode)  # type: ignore[arg-type]
        return torch.where(self.pos_mask > 0, weight, 1)

    def _seen(self) -> _Last:
        if self._last is None:
            raise RuntimeError("the loss must have been called before this is read, got no call")
        return self._last

    def extra_repr(self) -> str:
        """Return the settings for `repr`."""
        return f"T: {self._t}, method: {self._weight_update}, gamma: {self._gamma}"
