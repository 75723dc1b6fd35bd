"""A segmenter around an encoder of one's own: a U-Net's decoder on the maps that it returns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from spcl_fast.segmentation.networks.encoders import all_maps, map_shapes
from spcl_fast.segmentation.networks.unet import Norm, UNet, UNetDecoder

PROBE_SIDE = 64  # of the image whose maps show the encoder's channels and strides


class EncoderUNet(UNet):
    """Segment images by an encoder, and a decoder with a block for every step between its maps.

    Args:
        encoder: Takes images (B, 1, H, W), of 64 x 64 too; returns a map, or several from shallow
            to deep. The side of the first is that of the image over a whole number.
        num_classes: Classes K, the background among them.
        norm: Of the decoder: BatchNorm, or GroupNorm.

    Raises:
        ValueError: The encoder's maps are not as described.
    """

    def __init__(self, encoder: nn.Module, num_classes: int = 4, norm: Norm = "batch") -> None:
        nn.Module.__init__(self)
        shapes = map_shapes(encoder, PROBE_SIDE)
        sides = [shape[2] for shape in shapes]
        if sides != sorted(sides, reverse=True) or PROBE_SIDE % sides[0]:
            raise ValueError(
                f"the encoder's maps must go from shallow to deep, the first with a side that "
                f"divides {PROBE_SIDE}, got sides {sides}"
            )
        self.encoder = encoder  # type: ignore[assignment]
        self._channels = tuple(shape[1] for shape in shapes)
        self.decoder = MapsDecoder(self._channels, PROBE_SIDE // sides[0], norm)
        self.out = nn.Conv2d(self._channels[0], num_classes, kernel_size=1)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the encoder's maps, shallow to deep."""
        return self._channels

    def encode(self, image: Tensor) -> list[Tensor]:
        """Return the maps of the encoder, shallow to deep."""
        return all_maps(self.encoder(image))


class MapsDecoder(UNetDecoder):
    """Expand maps of any sides back to the side of the image.

    Args:
        channels: Channels of the maps, shallow to deep.
        stride: Side of the image over that of the first map.
        norm: BatchNorm, or GroupNorm.
    """

    def __init__(self, channels: Sequence[int], stride: int, norm: Norm = "batch") -> None:
        super().__init__(channels, norm)
        self.stride = float(stride)

    def forward(self, features: Sequence[Tensor], num_blocks: int | None = None) -> list[Tensor]:
        """Return one map per block, deep to shallow; the last of all has the side of the image."""
        maps = []
        x = features[-1]
        blocks = list(zip(self.ups, self.blocks, reversed(features[:-1]), strict=True))
        for up, block, skip in blocks[:num_blocks]:
            x = up(interpolate(x, size=skip.shape[2:], mode="nearest"))
            x = block(torch.cat([skip, x], dim=1))
            maps.append(x)
        if self.stride > 1 and len(maps) == len(blocks):
            x = interpolate(x, scale_factor=self.stride, mode="bilinear", align_corners=False)
        return [*maps[:-1], x]
