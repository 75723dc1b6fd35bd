"""`ClipLoss` of open_clip, in O(N D) memory, both directions from one visit of the similarities.

Compared with open_clip_torch 3.3.0. What differs:

- There are no logits: `get_logits` and `get_ground_truth` are not offered, and `cache_labels` has
  nothing to cache. `logit_bias` is accepted; the loss is invariant to it.
- On several ranks with `gather_with_grad` and `local_loss`, every rank returns the mean over all
  ranks, where theirs returns the mean over its own rows; averaged over the ranks, as
  DistributedDataParallel does, the gradients are the same.
- `use_horovod` must be False.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spcl_fast.distributed import infonce_rows
from spcl_fast.losses.result import mean_over_anchors
from spcl_fast.ops import Impl, infonce_terms, pair_lse
from spcl_fast.ops._checks import check_rows, positive_number
from spcl_fast.precision import at_least_float32


class ClipLoss(nn.Module):
    """InfoNCE of images and texts in both directions (arXiv:2103.00020).

        L = 1/2 mean_i (log sum_j exp(s_ij) - s_ii) + 1/2 mean_i (log sum_j exp(s_ji) - s_ii)
        s_ij = logit_scale image_i . text_j

    Example:
        >>> loss = ClipLoss()
        >>> loss(image_features, text_features, logit_scale).backward()

    Args:
        local_loss: on several ranks, average over the rows of this rank.
        gather_with_grad: on several ranks, let gradients reach the rows of the others.
        cache_labels: ignored.
        rank: rank of this process.
        world_size: number of ranks, which are those of the default process group.
        use_horovod: must be False.
        impl: implementation of the ops.

    Raises:
        ValueError: `use_horovod` is True.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        *,
        impl: Impl = "auto",
    ) -> None:
        super().__init__()
        if use_horovod:
            raise ValueError("use_horovod must be False: ranks are those of torch.distributed")
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.use_horovod = use_horovod
        self.impl: Impl = impl

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Compute the loss.

        Args:
            image_features: (N, D), floating, L2-normalised by the caller.
            text_features: (N, D); row i is the text of image i.
            logit_scale: 1 / tau, above 0; a number or a tensor of one element.
            logit_bias: would be added to every similarity, to which the loss is invariant.
            output_dict: return a dict.

        Returns:
            The loss, 0-dim, or {"contrastive_loss": it}; differentiable in the features and a
            tensor `logit_scale`, with a gradient of 0 for `logit_bias`.

        Raises:
            TypeError: the features are not floating, or their dtypes differ.
            ValueError: the shapes differ; `logit_scale` is out of range, or has several elements.
        """
        check_rows("image_features", image_features)
        check_rows("text_features", text_features)
        if image_features.shape != text_features.shape:
            raise ValueError(
                f"text_features must be {tuple(image_features.shape)} as image_features, "
                f"got {tuple(text_features.shape)}"
            )
        image, text = at_least_float32(image_features), at_least_float32(text_features)
        if image.dtype != text.dtype:
            raise TypeError(
                f"text_features must have the dtype of image_features, {image_features.dtype}, "
                f"got {text_features.dtype}"
            )
        tau = _temperature(logit_scale)
        if self.world_size == 1:
            loss = self._single(image, text, tau)
        elif self.local_loss and not self.gather_with_grad:
            loss = self._without_gradients_of_others(image, text, tau)
        else:
            loss = self._gathered(image, text, tau)
        if logit_bias is not None:
            loss = loss + 0 * logit_bias.sum()
        return {"contrastive_loss": loss} if output_dict else loss

    def _single(self, image: Tensor, text: Tensor, tau: float | Tensor) -> Tensor:
        terms = infonce_terms(image, text, tau, symmetric=True, impl=self.impl)
        if terms is not None:
            return terms.loss
        lse_image, lse_text = pair_lse(image, tau, refs=text, impl=self.impl)
        own = (image * text).sum(1) / tau
        return ((lse_image + lse_text) / 2 - own).mean()

    def _without_gradients_of_others(
        self, image: Tensor, text: Tensor, tau: float | Tensor
    ) -> Tensor:
        lse_image, _ = pair_lse(image, tau, refs=self._all_rows(text), impl=self.impl)
        lse_text, _ = pair_lse(text, tau, refs=self._all_rows(image), impl=self.impl)
        # the positive of a row is a gathered row too, which has no gradient either
        own = (image * text.detach() + image.detach() * text).sum(1) / tau / 2
        return ((lse_image + lse_text) / 2 - own).mean()

    def _all_rows(self, x: Tensor) -> Tensor:
        rows = [torch.empty_like(x) for _ in range(self.world_size)]
        torch.distributed.all_gather(rows, x.detach().contiguous())
        return torch.cat(rows)

    def _gathered(self, image: Tensor, text: Tensor, tau: float | Tensor) -> Tensor:
        group: Any = torch.distributed.group.WORLD
        if not self.gather_with_grad:  # the gradient of its own rows alone, which is 1 / W of ours
            image, text = _scaled(image, self.world_size), _scaled(text, self.world_size)
        rows = infonce_rows(image, text, tau, symmetric=True, group=group, impl=self.impl)
        directions = [mean_over_anchors(x.loss, x.num_pos) for x in rows.pairs]
        return torch.stack(directions).mean()


def _temperature(logit_scale: float | Tensor) -> float | Tensor:
    """Return tau of a scale, whose value is not read in a tensor."""
    if not isinstance(logit_scale, Tensor):
        return 1 / positive_number("logit_scale", logit_scale)
    if logit_scale.numel() != 1:
        raise ValueError(
            "logit_scale must be a number or a tensor of one element, "
            f"got {tuple(logit_scale.shape)}"
        )
    return at_least_float32(logit_scale).reshape(()).reciprocal()


def _scaled(x: Tensor, world_size: int) -> Tensor:
    """Return `x` with its gradient divided."""
    return x.detach() + (x - x.detach()) / world_size
