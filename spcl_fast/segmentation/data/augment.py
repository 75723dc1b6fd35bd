"""Random geometry and intensity for batches of slices, as tensor operations on their device.

    output pixel p (x, y in pixels from the centre)  ->  input pixel  F R(angle) p / scale - shift
    image' = clip(contrast (clip(brightness image) - mean) + mean) ^ gamma, clipped to [0, 1]

Masks follow the same sampling positions as images, with nearest neighbour instead of bilinear
values. Ranges after the authors' rotation 45 degrees, flips, jitter 0.5 to 1.5 (arXiv:2107.13741).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_fast.devices import sent_to


@dataclass(frozen=True)
class AugmentConfig:
    """Ranges of the random transform; values are drawn uniformly, independently for each image.

    Attributes:
        rotation_deg: Largest rotation in either direction, in degrees.
        flip: Mirror each axis with probability one half.
        shift: Largest displacement in either direction, as a fraction of the image side.
        scale: Range of the magnification; above 1 enlarges.
        brightness: Range of the factor on the image.
        contrast: Range of the factor on the difference from the image's mean.
        gamma: Range of the exponent.

    Raises:
        ValueError: A range is reversed or not positive, or a magnitude is negative.
    """

    rotation_deg: float = 45.0
    flip: bool = True
    shift: float = 0.1
    scale: tuple[float, float] = (0.9, 1.1)
    brightness: tuple[float, float] = (0.5, 1.5)
    contrast: tuple[float, float] = (0.5, 1.5)
    gamma: tuple[float, float] = (0.5, 1.5)

    def __post_init__(self) -> None:
        for name in ("rotation_deg", "shift"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("scale", "brightness", "contrast", "gamma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be a range 0 < low <= high, got {(low, high)}")


@overload
def augment(
    images: Tensor, masks: None, config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor, None]: ...


@overload
def augment(
    images: Tensor, masks: Tensor, config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]: ...


def augment(
    images: Tensor, masks: Tensor | None, config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Transform each image, and its mask with it.

    Args:
        images: (B, 1, H, W) floating point in [0, 1].
        masks: (B, H, W) integer labels, or None.
        config: Ranges.
        generator: CPU generator; the draws do not depend on the device of images.

    Returns:
        images (B, 1, H, W) in [0, 1] and masks (B, H, W) of the dtypes given; outside the input is
        0.
    """
    theta = draw_affine(len(images), config, generator)
    images, masks = warp(images, masks, theta)
    return jitter_intensity(images, config, generator), masks


def draw_affine(batch: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Draw (B, 2, 3) float64 sampling matrices on the CPU, see `affine`."""
    u = torch.rand(batch, 6, generator=generator, dtype=torch.float64)
    angle_deg = (2 * u[:, 0] - 1) * config.rotation_deg
    low, high = config.scale
    shift = (2 * u[:, 2:4] - 1) * config.shift
    flip = (u[:, 4:6] < 0.5) & config.flip
    return affine(angle_deg, low + (high - low) * u[:, 1], shift, flip)


def affine(angle_deg: Tensor, scale: Tensor, shift: Tensor, flip: Tensor) -> Tensor:
    """Return matrices that map an output position to the input position it shows.

    Args:
        angle_deg: (B,) float64, positive turns the content counter-clockwise as displayed.
        scale: (B,) float64 magnification of the content.
        shift: (B, 2) float64, (x, y) displacement of the sampling position as fractions of the
            side.
        flip: (B, 2) bool, mirror x, mirror y.

    Returns:
        (B, 2, 3) float64, positions (x, y) from -1 to 1 across a square image.
    """
    angle = angle_deg * (math.pi / 180)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    linear = torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)
    sign = torch.where(flip, -1.0, 1.0).to(linear.dtype)
    return torch.cat([sign[:, :, None] * linear, 2 * shift[:, :, None]], dim=2)


def warp(images: Tensor, masks: Tensor | None, theta: Tensor) -> tuple[Tensor, Tensor | None]:
    """Sample images (bilinear) and masks (nearest) at the same positions.

    Args:
        images: (B, 1, H, W) floating point.
        masks: (B, H, W) integer labels, or None.
        theta: (B, 2, 3) from `affine`; rotations stay rotations also where H and W differ.

    Returns:
        images and masks of the shapes and dtypes given; 0 where the input does not reach.
    """
    H, W = images.shape[-2:]
    aspect = theta.new_tensor([[1.0, H / W, 1.0], [W / H, 1.0, 1.0]])
    theta = sent_to(images.device, (theta * aspect).to(torch.float32))
    positions = F.affine_grid(theta, [len(images), 1, H, W], align_corners=False)
    warped = F.grid_sample(images, positions.to(images.dtype), mode="bilinear", align_corners=False)
    if masks is None:
        return warped, None
    labels = masks.unsqueeze(1).to(torch.float32)
    labels = F.grid_sample(labels, positions, mode="nearest", align_corners=False)
    return warped, labels.squeeze(1).to(masks.dtype)


def jitter_intensity(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and gamma of each image.

    Args:
        images: (B, 1, H, W) floating point in [0, 1].
        config: Ranges.
        generator: CPU generator.

    Returns:
        (B, 1, H, W) in [0, 1].
    """
    return change_intensity(images, draw_intensity(len(images), config, generator))


def draw_intensity(batch: int, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Draw (B, 3) float32 on the CPU: brightness, contrast and gamma of each image."""
    ranges = torch.tensor([config.brightness, config.contrast, config.gamma])  # (3, 2)
    u = torch.rand(batch, 3, generator=generator)
    return ranges[:, 0] + (ranges[:, 1] - ranges[:, 0]) * u


def change_intensity(images: Tensor, factors: Tensor) -> Tensor:
    """Return images (B, 1, H, W) in [0, 1] changed by factors (B, 3), see `draw_intensity`."""
    factors = sent_to(images.device, factors.to(images.dtype))
    brightness, contrast, gamma = factors[:, :, None, None, None].unbind(1)  # (B, 1, 1, 1) each
    images = (images * brightness).clamp(0.0, 1.0)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - mean) * contrast + mean).clamp(0.0, 1.0).pow(gamma)
