"""What the examples share: generated images, an encoder, an accuracy."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

NUM_CLASSES = 10
SIDE = 16  # pixels


def arguments(steps: int, batch: int, **others: int) -> argparse.Namespace:
    """Parse the command line with these defaults, and seed torch."""
    parser = argparse.ArgumentParser()
    for name, value in {"steps": steps, "batch": batch, "seed": 0, **others}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    return args


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noisy shifted patterns, (count, 1, 16, 16), one per class, and classes (count,)."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.randn(NUM_CLASSES, 1, SIDE // 2, SIDE // 2, generator=draw)
    pattern = interpolate(coarse, SIDE, mode="bilinear")
    draw.manual_seed(1 + seed)
    labels = torch.randint(NUM_CLASSES, (count,), generator=draw)
    noise = torch.randn(count, 1, SIDE, SIDE, generator=draw)
    return moved(pattern[labels], draw) + 0.8 * noise, labels


def moved(x: Tensor, draw: torch.Generator | None = None) -> Tensor:
    """Roll every image (N, C, H, W) by random offsets from 0 to H - 1 pixels."""
    N, C, H, W = x.shape
    down, right = torch.randint(H, (2, N, 1, 1, 1), generator=draw).to(x.device)
    image, channel, row, column = (torch.arange(n, device=x.device) for n in (N, C, H, W))
    rows, columns = (row.view(H, 1) + down) % H, (column + right) % W
    return x[image.view(N, 1, 1, 1), channel.view(C, 1, 1), rows, columns]


def view(x: Tensor) -> Tensor:
    """Return an augmented copy: shifted, with random contrast and more noise."""
    contrast = 0.7 + 0.6 * torch.rand(x.shape[0], 1, 1, 1, device=x.device)
    return moved(x) * contrast + 0.2 * torch.randn_like(x)


def encoder(dim: int = 32) -> nn.Sequential:
    """Return a small network from images to (N, dim); its rows are not normalised."""

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 5, stride, padding=2, padding_mode="circular", bias=False)
        return [conv, nn.GroupNorm(4, outputs), nn.ReLU()]

    features = [*block(1, 16, 2), *block(16, 32, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*features, nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, dim))


@torch.no_grad()
def neighbour_accuracy(model: nn.Module, count: int = 500) -> float:
    """Return the share of new images whose nearest other image has the same class."""
    x, labels = images(count, seed=1)
    z = normalize(model(x), dim=1)
    similarity = (z @ z.T).fill_diagonal_(-2)
    return (labels[similarity.argmax(1)] == labels).float().mean().item()
