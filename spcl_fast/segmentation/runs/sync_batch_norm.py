"""BatchNorm with the statistics of the rows of all ranks.

On CUDA it is `torch.nn.SyncBatchNorm`, which refuses CPU tensors; elsewhere the module below.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spcl_fast.precision import dtype_of_results
from spcl_fast.segmentation.runs.ranks import Ranks


def synchronised(module: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """Return `module` with every BatchNorm synchronised; parameters and their names stay."""
    if ranks.world == 1:
        return module
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module, ranks.group)  # type: ignore[no-any-return,no-untyped-call]
    if isinstance(module, _BatchNorm):
        return RankBatchNorm(module, ranks)
    for name, child in module.named_children():
        setattr(module, name, synchronised(child, ranks, device))
    return module


class RankBatchNorm(_BatchNorm):
    """BatchNorm over the rows of all ranks, in operations of torch; two sums cross the ranks.

    Args:
        norm: Its parameters and buffers are used, not copied.
        ranks: The processes.
    """

    def __init__(self, norm: _BatchNorm, ranks: Ranks) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=False)
        self.affine = norm.affine
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self._buffers[name] = norm._buffers[name]
        self.train(norm.training)
        self._ranks = ranks

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"input must be (B, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input (B, C, ...), in its dtype."""
        if not self.training:
            return super().forward(input)
        x = input.to(dtype_of_results(input))
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = (1, -1, *[1] * (x.ndim - 2))
        own = x.new_tensor([x.numel() / x.shape[1]])
        sums = self._ranks.sum(torch.cat([own, x.sum(axes)]))
        count = sums[0].detach()
        mean = sums[1:] / count
        centred = x - mean.view(shape)
        var = self._ranks.sum(centred.square().sum(axes)) / count
        self._track(mean, var * (count / (count - 1)))
        scale = (var + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        y = centred * scale.view(shape)
        return (y + self.bias.view(shape) if self.affine else y).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None and self.running_var is not None  # noqa: PT018
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var, share)
