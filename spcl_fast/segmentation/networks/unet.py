"""The two-dimensional U-Net of arXiv:2107.13741, with an encoder that can be used alone.

    encoder  Conv1..Conv5: [3x3 convolution, BatchNorm, ReLU] x 2, max-pool 2 between them
    decoder  Up5..Up2: nearest x 2, 3x3 convolution block, concatenation with the skip, double block
    out      1x1 convolution with bias

With 256 channels at the bottom, 1 input channel and 4 classes: 1,179,472 + 980,640 + 68 parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

Norm = Literal["batch", "group"]
NUM_LEVELS = 5
NUM_GROUPS = 8  # of GroupNorm, or fewer, so that they divide the channels
STRIDE = 2 ** (NUM_LEVELS - 1)  # side of the input over the side of Conv5


class UNetEncoder(nn.Module):
    """Contract an image to five feature maps, each half the side of the one before.

    Args:
        in_channels: Channels C of the image.
        max_channels: Channels of the deepest map, a multiple of 16.
        norm: BatchNorm, or GroupNorm, which sees every image by itself.

    Attributes:
        channels: Channels of the five maps, shallow to deep.

    Raises:
        ValueError: If in_channels is not positive or max_channels no positive multiple of 16.
    """

    def __init__(self, in_channels: int = 1, max_channels: int = 256, norm: Norm = "batch") -> None:
        super().__init__()
        if in_channels < 1:
            raise ValueError(f"in_channels must be positive, got {in_channels}")
        if max_channels < STRIDE or max_channels % STRIDE:
            raise ValueError(
                f"max_channels must be a positive multiple of {STRIDE}, got {max_channels}"
            )
        self.in_channels = in_channels
        self.channels = tuple(max_channels >> level for level in reversed(range(NUM_LEVELS)))
        inputs = (in_channels, *self.channels[:-1])
        self.blocks = nn.ModuleList(
            _double_conv(i, o, norm) for i, o in zip(inputs, self.channels, strict=True)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the maps Conv1 to Conv5.

        Args:
            image: (B, C, H, W) floating point, H and W multiples of 16.

        Returns:
            Five maps; map k is (B, channels[k], H / 2^k, W / 2^k), the last is Conv5.

        Raises:
            ValueError: If image is not 4-D with C channels or a side is not a multiple of 16.
        """
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ValueError(
                f"image must be (B, {self.in_channels}, H, W), got {tuple(image.shape)}"
            )
        if image.shape[2] % STRIDE or image.shape[3] % STRIDE:
            raise ValueError(
                f"image must have sides that are multiples of {STRIDE}, got {tuple(image.shape)}"
            )
        features = []
        x = image
        for level, block in enumerate(self.blocks):
            x = block(x if level == 0 else max_pool2d(x, 2))
            features.append(x)
        return features


class UNetDecoder(nn.Module):
    """Expand the maps of a `UNetEncoder` back to the side of its input.

    Args:
        channels: Channels of the encoder's maps, shallow to deep.
        norm: As of the encoder.
    """

    def __init__(self, channels: Sequence[int], norm: Norm = "batch") -> None:
        super().__init__()
        pairs = [(channels[k + 1], channels[k]) for k in reversed(range(len(channels) - 1))]
        self.ups = nn.ModuleList(_conv(deep, shallow, norm) for deep, shallow in pairs)
        self.blocks = nn.ModuleList(_double_conv(2 * out, out, norm) for _, out in pairs)

    def forward(self, features: Sequence[Tensor], num_blocks: int | None = None) -> list[Tensor]:
        """Return the maps of the decoder.

        Args:
            features: The encoder's maps, shallow to deep.
            num_blocks: Blocks to run, from the deepest on; None for all.

        Returns:
            One map per block, deep to shallow, Up_conv5 to Up_conv2; the last has the shape of
            features[0].
        """
        maps = []
        x = features[-1]
        blocks = list(zip(self.ups, self.blocks, reversed(features[:-1]), strict=True))
        for up, block, skip in blocks[:num_blocks]:
            x = up(interpolate(x, scale_factor=2.0, mode="nearest"))
            x = block(torch.cat([skip, x], dim=1))
            maps.append(x)
        return maps


class UNet(nn.Module):
    """Segment images with the U-Net of arXiv:2107.13741.

    Args:
        in_channels: Channels C of the image.
        num_classes: Classes K, the background among them.
        max_channels: Channels of Conv5, a multiple of 16.
        norm: BatchNorm, or GroupNorm, which sees every image by itself.

    Raises:
        ValueError: If an argument is not as described.

    Example:
        >>> net = UNet(in_channels=1, num_classes=4)
        >>> net(torch.zeros(2, 1, 64, 64)).shape
        torch.Size([2, 4, 64, 64])
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 4,
        max_channels: int = 256,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be positive, got {num_classes}")
        self.encoder = UNetEncoder(in_channels, max_channels, norm)
        self.decoder = UNetDecoder(self.encoder.channels, norm)
        self.out = nn.Conv2d(self.encoder.channels[0], num_classes, kernel_size=1)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the encoder's maps, shallow to deep."""
        return self.encoder.channels

    def encode(self, image: Tensor) -> list[Tensor]:
        """Return the five maps of the encoder, as `UNetEncoder.forward` does."""
        features: list[Tensor] = self.encoder(image)
        return features

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """Return the logits (B, K, H, W) of the maps that `encode` gave for (B, C, H, W)."""
        logits: Tensor = self.out(self.decoder(features)[-1])
        return logits

    def forward(self, image: Tensor) -> Tensor:
        """Return class scores before the softmax.

        Args:
            image: (B, C, H, W) floating point, H and W multiples of 16.

        Returns:
            (B, K, H, W) logits in the dtype of the image.

        Raises:
            ValueError: If image is not 4-D with C channels or a side is not a multiple of 16.
        """
        return self.decode(self.encode(image))


def _conv(inputs: int, outputs: int, norm: Norm) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
    if norm == "batch":
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
    groups = math.gcd(NUM_GROUPS, outputs)
    return nn.Sequential(conv, nn.GroupNorm(groups, outputs), nn.ReLU(inplace=True))


def _double_conv(inputs: int, outputs: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(*_conv(inputs, outputs, norm), *_conv(outputs, outputs, norm))
