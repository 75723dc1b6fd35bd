"""`ContrastiveLoss` of MONAI, in O(N D) memory.

Compared with MONAI 1.6.1. What differs: no overflow where `temperature` is below 0.012 (the
exponentials there are not shifted), a `temperature` that is not rounded to float32 for float64
inputs, and that must be above 0. Half precision is computed in float32: theirs is NaN for a float16
row of zeros, and takes rows longer than 65504 for zeros.
"""

from __future__ import annotations

import warnings

from torch import Tensor, nn

from spcl_fast.compat._temperature import check_temperature
from spcl_fast.losses import NTXentLoss
from spcl_fast.ops import Impl
from spcl_fast.ops._checks import check_rows, check_tensor
from spcl_fast.precision import at_least_float32


class ContrastiveLoss(nn.modules.loss._Loss):
    """NT-Xent (arXiv:2002.05709) of two views, whose rows are normalised here.

    Example:
        >>> loss = ContrastiveLoss(temperature=0.5)
        >>> loss(view1, view2).backward()

    Args:
        temperature: tau.
        batch_size: ignored; anything but -1 warns.
        impl: implementation of the ops.

    Raises:
        ValueError: `temperature` is not finite and above 0.
    """

    def __init__(
        self, temperature: float = 0.5, batch_size: int = -1, *, impl: Impl = "auto"
    ) -> None:
        super().__init__()
        check_temperature("temperature", temperature)
        self.temperature = temperature
        self.impl: Impl = impl
        if batch_size != -1:
            warnings.warn("batch_size is read from the input, and need not be set", stacklevel=2)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            input: (B, D), floating.
            target: (B, D); row i is the other view of row i of `input`.

        Returns:
            The loss, 0-dim, differentiable in both.

        Raises:
            TypeError: an input is not floating.
            ValueError: an input is not of 2 dimensions, or the shapes differ.
        """
        check_tensor("input", input)
        check_tensor("target", target)
        if input.ndim != 2 or target.ndim != 2:
            raise ValueError(
                f"input and target must be (B, D), got {tuple(input.shape)} {tuple(target.shape)}"
            )
        if input.shape != target.shape:
            raise ValueError(
                f"target must be {tuple(input.shape)} as input, got {tuple(target.shape)}"
            )
        check_rows("input", input)
        check_rows("target", target)
        # 1e-8: the bound on lengths of torch.nn.functional.cosine_similarity
        rows = (at_least_float32(x) for x in (input, target))
        views = (nn.functional.normalize(x, dim=1, eps=1e-8) for x in rows)
        loss: Tensor = NTXentLoss(self.temperature, impl=self.impl)(*views).loss
        return loss
