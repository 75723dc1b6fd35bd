"""A common in-plane grid for volumes of any size and spacing, and the way back.

    g = grid spacing in mm;  h = round(H dy / g) rows and w = round(W dx / g) columns
    to_grid      (H, W) -> interpolate -> (h, w) -> centre crop or zero pad -> (size, size)
    from_grid    (size, size) -> undo crop or pad -> (h, w) -> interpolate -> (H, W)

Both use the same h, w and offset, so the two are aligned. Slices are not mixed: z is untouched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_fast.segmentation.data.arrays import Spacing

# of the foreground classes where the grid has no pixel; finite also in float16
OUTSIDE_LOGIT = -1e4


@dataclass(frozen=True)
class Grid:
    """A square in-plane grid.

    Attributes:
        size: Pixels along each side.
        spacing_mm: Side of a pixel in millimetres.

    Raises:
        ValueError: `size` or `spacing_mm` is not positive.
    """

    size: int = 64
    spacing_mm: float = 3.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be a positive number of pixels, got {self.size}")
        if not self.spacing_mm > 0:
            raise ValueError(f"spacing_mm must be positive, got {self.spacing_mm}")


def to_grid(volume: Tensor, spacing_mm: Spacing, grid: Grid, *, labels: bool = False) -> Tensor:
    """Resample every slice to the grid.

    Args:
        volume: (S, H, W), floating point, or uint8 with ``labels``.
        spacing_mm: (dz, dy, dx) of volume, in millimetres; dz is not used.
        grid: Target.
        labels: Nearest neighbour instead of antialiased bilinear interpolation.

    Returns:
        (S, size, size), dtype of volume; zero where the volume does not reach.
    """
    h, w = _resampled_shape(volume.shape[-2:], spacing_mm, grid)
    x = volume.unsqueeze(1)  # (S, 1, H, W)
    if labels:
        x = F.interpolate(x, size=(h, w), mode="nearest-exact")
    else:
        x = F.interpolate(x, size=(h, w), mode="bilinear", antialias=True)
    top, left = (grid.size - h) // 2, (grid.size - w) // 2  # negative: crop
    return F.pad(x.squeeze(1), (left, grid.size - w - left, top, grid.size - h - top))


def image_to_grid(image: Tensor, spacing_mm: Spacing, grid: Grid) -> Tensor:
    """Return a volume as the network sees it: normalised, on the grid, in [0, 1].

    Args:
        image: (S, H, W) floating point, any intensity scale.
        spacing_mm: (dz, dy, dx), in millimetres.
        grid: Target.

    Returns:
        (S, size, size); the interpolation can overshoot, so it is clipped again.
    """
    return to_grid(normalize(image), spacing_mm, grid).clamp(0.0, 1.0)


def from_grid(logits: Tensor, shape: tuple[int, int], spacing_mm: Spacing, grid: Grid) -> Tensor:
    """Resample logits from the grid to the pixels of the volume, inverting `to_grid`.

    Args:
        logits: (S, K, size, size) floating point, class 0 is background.
        shape: (H, W) of the volume.
        spacing_mm: (dz, dy, dx) of the volume, in millimetres.
        grid: The grid of logits.

    Returns:
        (S, K, H, W), bilinearly interpolated. Pixels outside the grid get logit 0 for class 0 and
        -1e4 for every other class. Differentiable in logits.

    Raises:
        ValueError: `logits` is not (S, K, size, size).
    """
    if logits.ndim != 4 or logits.shape[2:] != (grid.size, grid.size):
        raise ValueError(
            f"logits must be (S, K, {grid.size}, {grid.size}), got {tuple(logits.shape)}"
        )
    h, w = _resampled_shape(shape, spacing_mm, grid)
    rows = torch.arange(h, device=logits.device) + (grid.size - h) // 2
    columns = torch.arange(w, device=logits.device) + (grid.size - w) // 2
    last = grid.size - 1
    # replicate the edge, so that interpolation does not blend it with the outside
    x = logits[:, :, rows.clamp(0, last)][:, :, :, columns.clamp(0, last)]  # (S, K, h, w)
    x = F.interpolate(x, size=shape, mode="bilinear", antialias=True)
    inside = covered(shape, spacing_mm, grid).to(x.device)
    outside = torch.full((logits.shape[1], 1, 1), OUTSIDE_LOGIT, dtype=x.dtype, device=x.device)
    outside[0] = 0.0
    return torch.where(inside, x, outside)


def covered(shape: tuple[int, int], spacing_mm: Spacing, grid: Grid) -> Tensor:
    """Return which pixels of a slice the grid covers.

    Args:
        shape: (H, W) of the slice.
        spacing_mm: (dz, dy, dx) of the volume, in millimetres.
        grid: The grid, centred on the slice.

    Returns:
        (H, W) bool on the CPU.
    """
    sides = []
    for length, resampled in zip(shape, _resampled_shape(shape, spacing_mm, grid), strict=True):
        index = torch.arange(resampled) + (grid.size - resampled) // 2
        flags = ((index >= 0) & (index < grid.size)).float()[None, None]
        sides.append(F.interpolate(flags, size=length, mode="nearest-exact")[0, 0].bool())
    return sides[0][:, None] & sides[1][None, :]


def normalize(image: Tensor) -> Tensor:
    """Map the 1st to 99th percentile of a volume to [0, 1] and clip.

    Args:
        image: (S, H, W) floating point, finite.

    Returns:
        Same shape and dtype, in [0, 1]. Where the two percentiles coincide minimum and maximum
        take their place; a constant volume becomes zeros.
    """
    values = image.flatten()
    n = values.numel()
    low = values.kthvalue(1 + round(0.01 * (n - 1))).values
    high = values.kthvalue(1 + round(0.99 * (n - 1))).values
    if not low < high:
        low, high = values.min(), values.max()
    if not low < high:
        return torch.zeros_like(image)
    return ((image - low) / (high - low)).clamp(0.0, 1.0)


def _resampled_shape(shape: tuple[int, ...], spacing_mm: Spacing, grid: Grid) -> tuple[int, int]:
    (H, W), (_, dy, dx) = shape, spacing_mm
    return max(1, round(H * dy / grid.spacing_mm)), max(1, round(W * dx / grid.spacing_mm))
