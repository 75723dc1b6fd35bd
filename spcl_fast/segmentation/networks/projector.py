"""Heads that turn features of the U-Net into unit rows for a contrastive loss.

    global  z = normalize(W2 leaky_relu(W1 mean(features) + b1) + b2)      one row per image
    dense   the same with 1x1 convolutions, then pooled to size x size     one row per cell

Both are discarded after the pre-training (arXiv:2107.13741).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, normalize

NEGATIVE_SLOPE = 0.01


class ProjectionHead(nn.Module):
    """Project a feature map to one unit row per image.

    Args:
        in_features: Channels C of the feature map.
        hidden: Width of the hidden layer.
        out: Size D of the row.
        batch_norm: Add a BatchNorm1d after the first linear layer. The paper has none; with it
            short trials leave the plateau at log(N - 1) sooner. Training then needs B >= 2.

    Raises:
        ValueError: If a size is not positive.
    """

    def __init__(
        self, in_features: int = 256, hidden: int = 256, out: int = 256, batch_norm: bool = False
    ) -> None:
        super().__init__()
        _check_sizes(in_features=in_features, hidden=hidden, out=out)
        self.in_features = in_features
        self.layers = nn.Sequential(
            nn.Linear(in_features, hidden),
            *([nn.BatchNorm1d(hidden)] if batch_norm else []),
            nn.LeakyReLU(NEGATIVE_SLOPE),
            nn.Linear(hidden, out),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return unit rows.

        Args:
            features: (B, C, H, W) floating point.

        Returns:
            (B, D) rows of Euclidean length 1.

        Raises:
            ValueError: If features is not 4-D with C channels.
        """
        _check_features(features, self.in_features)
        return normalize(self.layers(features.mean(dim=(2, 3))), dim=1)


class DenseProjectionHead(nn.Module):
    """Project a feature map to a grid of unit rows.

    Args:
        in_channels: Channels C of the feature map.
        hidden: Channels of the hidden layer.
        out: Size D of a row.
        size: Cells per side of the grid.

    Raises:
        ValueError: If a size is not positive.
    """

    def __init__(self, in_channels: int, hidden: int = 256, out: int = 256, size: int = 10) -> None:
        super().__init__()
        _check_sizes(in_channels=in_channels, hidden=hidden, out=out, size=size)
        self.in_channels = in_channels
        self.size = size
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, hidden, kernel_size=1),
            nn.LeakyReLU(NEGATIVE_SLOPE),
            nn.Conv2d(hidden, out, kernel_size=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return unit rows on a grid.

        Args:
            features: (B, C, H, W) floating point.

        Returns:
            (B, D, size, size); length 1 along D.

        Raises:
            ValueError: If features is not 4-D with C channels.
        """
        _check_features(features, self.in_channels)
        pooled = adaptive_avg_pool2d(self.layers(features), (self.size, self.size))
        return normalize(pooled, dim=1)


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")


def _check_features(features: Tensor, channels: int) -> None:
    if features.ndim != 4 or features.shape[1] != channels:
        raise ValueError(f"features must be (B, {channels}, H, W), got {tuple(features.shape)}")
