"""Several segmenters as one, mirrored images beside them, and the largest component of a class."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spcl_fast.segmentation.networks import UNet


class Ensemble(nn.Module):
    """The mean of the probabilities of several segmenters, and of mirrored images.

    Args:
        models: Segmenters of the same classes.
        flips: Mirror images along neither, either and both axes, and mirror the answers back.
    """

    def __init__(self, models: Sequence[UNet], *, flips: bool = False) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.axes: list[tuple[int, ...]] = [()]
        if flips:
            self.axes = [axes for n in range(3) for axes in itertools.combinations((2, 3), n)]

    @property
    def out(self) -> nn.Conv2d:
        """The last layer of the first segmenter, for its classes."""
        return self.models[0].out  # type: ignore[return-value]

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities (B, K, H, W) of images (B, 1, H, W)."""
        total: Tensor | None = None
        for model, axes in itertools.product(self.models, self.axes):
            p = model(images.flip(axes)).float().softmax(1).flip(axes)
            total = p if total is None else total + p
        assert total is not None  # there is a model
        return total / (len(self.models) * len(self.axes))


def largest_components(labels: Tensor) -> Tensor:
    """Return labels (S, H, W) with the largest connected component of every class but 0.

    Voxels of other components become background. Neighbours share a face.
    """
    from scipy.ndimage import label

    kept = torch.zeros_like(labels)
    for c in labels.unique().tolist():  # type: ignore[no-untyped-call]
        if c == 0:
            continue
        components = torch.from_numpy(label((labels == c).numpy())[0])
        sizes = torch.bincount(components.flatten())
        sizes[0] = 0
        kept[components == sizes.argmax()] = c
    return kept
