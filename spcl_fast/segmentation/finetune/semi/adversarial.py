"""Adversarial training: predictions on unlabelled slices should look like those on labelled ones.

    L_D = BCE(D(p(labelled)), 1) + BCE(D(p(unlabelled)), 0)        trains the discriminator D
    L   = BCE(D(p(unlabelled)), 1)                                 trains the segmenter

p is the softmax of the segmenter (Zhang et al., Deep adversarial networks for biomedical image
segmentation utilizing unannotated images, MICCAI 2017). D and its optimiser are those of DCGAN
(arXiv:1511.06434), without the image as a second input.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from spcl_fast.segmentation.finetune.semi.term import Batch, Term
from spcl_fast.segmentation.runs.ranks import ALONE, Rows


class Discriminator(nn.Sequential):
    """Classify patches of softmax maps as labelled or unlabelled.

    Four 4x4 convolutions of stride 2, then one of stride 1, padded so that a side of 32 suffices.
    Maps (B, K, H, W), sides multiples of 16 from 32 up, become logits (B, 1, H / 16 - 1,
    W / 16 - 1), positive for labelled.

    Args:
        num_classes: Channels K of the maps.
        width: Channels of the first layer; each of the next three doubles them.
    """

    def __init__(self, num_classes: int, width: int = 64) -> None:
        layers: list[nn.Module] = [_conv(num_classes, width), nn.LeakyReLU(0.2)]
        for level in range(3):
            channels = 2 * width << level
            norm = nn.BatchNorm2d(channels)
            nn.init.normal_(norm.weight, 1.0, 0.02)
            layers += [_conv(channels // 2, channels), norm, nn.LeakyReLU(0.2)]
        super().__init__(*layers, _conv(8 * width, 1, stride=1))


class Adversarial(Term):
    """Cross-entropy of the discriminator for the student's predictions on the views.

    ``forward`` first takes one step of the discriminator on detached maps. The discriminator is
    constant in the segmenter's loss, and the state of its optimiser is in the state dict.

    Args:
        num_classes: Classes K of the segmenter.
        width: Channels of the discriminator's first layer.
        lr: Learning rate of the discriminator, DCGAN's.

    Raises:
        ValueError: If num_classes or width is not positive.
    """

    def __init__(self, num_classes: int, width: int = 64, lr: float = 2e-4) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("width", width)):
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        self.discriminator = Discriminator(num_classes, width)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr, betas=(0.5, 0.999))
        self.discriminator.requires_grad_(False)

    def trained(self) -> Iterable[nn.Parameter]:
        """Return nothing: the discriminator has its own optimiser."""
        return ()

    def forward(self, batch: Batch) -> Tensor:
        """Return the cross-entropy in nats with "labelled" on the views, () float32."""
        rows = (batch.labelled_rows, batch.rows)
        self.train_discriminator(batch.labelled_logits.softmax(1), batch.probabilities, rows)
        return batch.rows.mean(self._cross_entropy(batch.probabilities, 1.0))

    def train_discriminator(
        self, labelled: Tensor, unlabelled: Tensor, rows: tuple[Rows, Rows] | None = None
    ) -> Tensor:
        """Take one step of the discriminator; return its loss before it, () float32, detached.

        Args:
            labelled: (L, K, H, W) softmax maps of labelled slices, not differentiated.
            unlabelled: (B, K, H, W) softmax maps of unlabelled slices, not differentiated.
            rows: This rank's parts of the labelled and of the unlabelled slices.
        """
        real, fake = rows or (ALONE.rows(len(labelled)), ALONE.rows(len(unlabelled)))
        self.discriminator.requires_grad_(True)
        loss = real.mean(self._cross_entropy(labelled.detach(), 1.0))
        loss = loss + fake.mean(self._cross_entropy(unlabelled.detach(), 0.0))
        loss.backward()  # type: ignore[no-untyped-call]
        real.ranks.average_gradients(self.discriminator.parameters())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.discriminator.requires_grad_(False)
        return loss.detach()

    def get_extra_state(self) -> dict[str, Any]:
        """Return the state of the discriminator's optimiser."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Load what `get_extra_state` returned."""
        self.optimizer.load_state_dict(copy.deepcopy(state))  # it would share the tensors

    def _cross_entropy(self, maps: Tensor, target: float) -> Tensor:
        logits = self.discriminator(maps)
        return binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def _conv(inputs: int, outputs: int, stride: int = 2) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel_size=4, stride=stride, padding=1, bias=False)
    nn.init.normal_(conv.weight, 0.0, 0.02)
    return conv
