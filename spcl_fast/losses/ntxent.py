"""The normalised temperature-scaled cross-entropy of two views (SimCLR)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spcl_fast.distributed import num_ranks, rank_in
from spcl_fast.losses.result import ContrastiveLossOutput
from spcl_fast.losses.supcon import SupConLoss
from spcl_fast.ops import Impl
from spcl_fast.ops._checks import check_rows

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Image numbers per rank: more than any batch needs, and 2^31 ranks fit in an int64.
IMAGES_PER_RANK = 1 << 32


class NTXentLoss(nn.Module):
    """NT-Xent (arXiv:2002.05709): the only positive of a row is the other view of its image.

        L = mean over the 2 B rows of lse_i - z_i . z_other(i) / tau

    Example:
        >>> loss = NTXentLoss(tau=0.5)
        >>> loss(view1, view2).loss.backward()

    Args:
        tau: temperature.
        learnable_tau: make log tau a parameter that starts at `tau`.
        impl: implementation of the ops.
        group: process group whose ranks bring the rows of one batch together, as for
            `SelfPacedContrastiveLoss`; None for this process alone.

    Raises:
        ValueError: `tau` is not finite and above 0.
    """

    def __init__(
        self,
        tau: float = 0.5,
        *,
        learnable_tau: bool = False,
        impl: Impl = "auto",
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.supcon = SupConLoss(tau, learnable_tau=learnable_tau, impl=impl, group=group)
        self.group = group

    def forward(self, view1: Tensor, view2: Tensor) -> ContrastiveLossOutput:
        """Compute the loss.

        Args:
            view1: (B, D), floating, rows L2-normalised by the caller.
            view2: (B, D), dtype and device of `view1`; row i is the other view of image i.

        Returns:
            A `ContrastiveLossOutput` over the 2 B rows, `view1` first; its loss is differentiable
            in both views and a learnable tau.

        Raises:
            TypeError: the views are not floating.
            ValueError: the views differ in shape, dtype or device.
        """
        check_rows("view1", view1)
        check_rows("view2", view2)
        if (view1.shape, view1.dtype, view1.device) != (view2.shape, view2.dtype, view2.device):
            raise ValueError(
                "view2 must be of the shape, dtype and device of view1, "
                f"{tuple(view1.shape)} {view1.dtype} {view1.device}, "
                f"got {tuple(view2.shape)} {view2.dtype} {view2.device}"
            )
        images = torch.arange(view1.shape[0], device=view1.device)
        if num_ranks(self.group) > 1:
            images += IMAGES_PER_RANK * rank_in(self.group)
        labels = images.repeat(2)
        out: ContrastiveLossOutput = self.supcon(torch.cat([view1, view2]), labels)
        return out
