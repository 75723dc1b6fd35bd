"""What is compared: a loss over two views of N / 2 images, forward and backward.

    self-paced   linear weights, gamma = pace log(N - 1), labels of the images
    supcon       the same at gamma = inf
    ntxent       the label of an image is the image itself: the other view is the only positive

Every row has a positive, so libraries that treat lonely rows differently agree on the loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from spcl_fast.pacing import relative_gamma
from spcl_fast.testing import make_embeddings, make_labels

Kind = Literal["self-paced", "supcon", "ntxent"]


@dataclass(frozen=True)
class Problem:
    """One problem; its inputs are the same in every process.

    Raises:
        ValueError: a field is out of range.
    """

    kind: Kind
    n: int
    """Rows, two views of n / 2 images."""
    dim: int = 128
    classes: int = 64
    """Labels are drawn from this many."""
    tau: float = 0.07
    pace: float = 1.5
    """Gamma of self-paced in units of log(n - 1)."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if self.n < 4 or self.n % 2:
            raise ValueError(f"n must be even and at least 4, got {self.n}")
        if min(self.dim, self.classes) < 1:
            raise ValueError(f"dim and classes must be positive, got {self.dim}, {self.classes}")
        if not (0 < self.tau < math.inf and self.pace > 0):
            raise ValueError(f"tau and pace must be above 0, got {self.tau}, {self.pace}")

    @property
    def gamma(self) -> float:
        """The pace of the pair weights."""
        return relative_gamma(self.pace, self.n) if self.kind == "self-paced" else math.inf

    def embeddings(self) -> Tensor:
        """Return z, (n, dim) float32, unit rows; row i + n / 2 is the other view of row i."""
        return make_embeddings(self.n, self.dim)

    def labels(self) -> Tensor:
        """Return the labels of the rows, (n,) int64."""
        num_images = self.n // 2
        own = self.kind == "ntxent"
        images = torch.arange(num_images) if own else make_labels(num_images, self.classes)
        return images.repeat(2)
