"""Models, rows and the plain step that `cached_step` is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from spcl_fast import ContrastiveLossOutput
from spcl_fast.testing import make_labels

N, IN, OUT = 13, 5, 4


class Encoder(nn.Module):
    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(
            nn.Linear(IN, 16), nn.GroupNorm(4, 16), nn.Dropout(dropout), nn.ReLU()
        )
        self.out = nn.Linear(16, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return normalize(self.out(self.layers(x)), dim=1)


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Encoder(), Encoder()

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(a), self.right(b)


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def scalar(value: Any) -> Tensor:
    return value.loss if isinstance(value, ContrastiveLossOutput) else value


def plain_step(
    model: nn.Module, batch: tuple[Tensor, ...], loss: Callable[[Any], Any], chunk: int
) -> Any:
    """All graphs at once; dropout draws its numbers chunk by chunk."""
    outputs = [model(*x) for x in zip(*(x.split(chunk) for x in batch), strict=True)]
    if isinstance(outputs[0], tuple):
        z: Any = tuple(torch.cat(x) for x in zip(*outputs, strict=True))
    else:
        z = torch.cat(outputs)
    value = loss(z)
    scalar(value).backward()
    return value


def images(count: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(N, IN, generator=generator, dtype=dtype) for _ in range(count))


def gradients(*modules: nn.Module) -> list[Tensor | None]:
    return [x.grad for module in modules for x in module.parameters()]


LABELS = make_labels(N, 3)
