"""A common in-plane grid for volumes of any size and spacing, and the way back.

    g = grid spacing in mm;  h = round(H dy / g) rows and w = round(W dx / g) columns
    to_grid      (H, W) -> interpolate -> (h, w) -> centre crop or zero pad -> (size, size)
    from_grid    (size, size) -> undo crop or pad -> (h, w) -> interpolate -> (H, W)

Both use the same h, w and offset, so the two are aligned. Slices are not mixed: z is untouched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from spcl_fast.segmentation.data.arrays import Spacing

# of the foreground classes where the grid has no pixel; finite also in float16
OUTSIDE_LOGIT = -1e4
_FILL_WIDTHS = 5.0  # between fill and the other values, in widths of their central 98 %
_LEAST_SHARE = 0.05  # of values between minimum and maximum; fewer say nothing about the two
_MOST_FILLS = 4


class IntensityRange(NamedTuple):
    """What becomes 0 and 1 of a volume.

    Attributes:
        low: 0-dim, in the type and on the device of the image.
        high: Likewise.
        num_fill: Voxels that were left out as fill.
    """

    low: Tensor
    high: Tensor
    num_fill: int


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
    return slices_to_grid(image, intensity_range(image), spacing_mm, grid)


def slices_to_grid(
    image: Tensor, window: IntensityRange, spacing_mm: Spacing, grid: Grid
) -> Tensor:
    """Return some slices of a volume as `image_to_grid` returns them with the others.

    Args:
        image: (n, H, W) slices of the volume.
        window: Of the whole volume.
        spacing_mm: (dz, dy, dx), in millimetres.
        grid: Target.

    Returns:
        (n, size, size) in [0, 1].
    """
    return to_grid(_rescale(image, window), spacing_mm, grid).clamp(0.0, 1.0)


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
    return _rescale(image, intensity_range(image))


def intensity_range(image: Tensor) -> IntensityRange:
    """Return the 1st and 99th percentile of a volume without its fill.

    Fill is a minimum or maximum that reaches the percentile and lies far from all other values, as
    -32768 around a round field of view does.

    Args:
        image: (S, H, W) floating point, finite.

    Returns:
        The percentiles; minimum and maximum where the two coincide.
    """
    values = image.detach().flatten().cpu()
    kept: NDArray[Any] = (values.float() if image.dtype == torch.bfloat16 else values).numpy()
    low, high = _percentiles(kept.copy())
    for _ in range(_MOST_FILLS):
        fills = _fill_values(kept, low, high)
        if not fills:
            break
        kept = kept[~np.isin(kept, fills)]
        low, high = _percentiles(kept.copy())
    if not low < high:
        low, high = kept.min(), kept.max()
    first, last = (torch.tensor(end, dtype=image.dtype, device=image.device) for end in (low, high))
    return IntensityRange(first, last, values.numel() - kept.size)


def _fill_values(values: NDArray[Any], low: Any, high: Any) -> list[Any]:
    """Return minimum or maximum or both if they are fill; low and high are the percentiles."""
    least, most = values.min(), values.max()
    if least < low and high < most:
        return []
    others = values[(values != least) & (values != most)]
    if others.size < max(1, _LEAST_SHARE * values.size):
        return []
    gaps = float(others.min()) - float(least), float(most) - float(others.max())
    first, last = map(float, _percentiles(others))
    if not first < last:
        return []
    far = [gap > _FILL_WIDTHS * (last - first) for gap in gaps]
    is_reached = low == least, high == most
    return [
        end for end, *is_fill in zip((least, most), far, is_reached, strict=True) if all(is_fill)
    ]


def _percentiles(values: NDArray[Any]) -> tuple[Any, Any]:
    """Return the 1st and 99th percentile; the values are put into another order."""
    ranks = [round(share * (values.size - 1)) for share in (0.01, 0.99)]
    values.partition(ranks)
    return values[ranks[0]], values[ranks[1]]


def _rescale(image: Tensor, window: IntensityRange) -> Tensor:
    low, high, _ = window
    if not low < high:
        return torch.zeros_like(image)
    if not torch.isfinite(high - low):  # half of each is within the type
        image, low, high = image / 2, low / 2, high / 2
    return ((image - low) / (high - low)).clamp(0.0, 1.0)


def _resampled_shape(shape: tuple[int, ...], spacing_mm: Spacing, grid: Grid) -> tuple[int, int]:
    (H, W), (_, dy, dx) = shape, spacing_mm
    return max(1, round(H * dy / grid.spacing_mm)), max(1, round(W * dx / grid.spacing_mm))
