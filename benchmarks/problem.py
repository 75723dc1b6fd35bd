"""What is compared: a loss over two views of N / 2 images, forward and backward.

    self-paced   linear weights, gamma = pace log(N - 1), labels of the images
    supcon       the same at gamma = inf
    ntxent       the label of an image is the image itself: the other view is the only positive
    meta-labels  self-paced with three labels at once, META_LABELS
    bank         supcon of N anchors against labelled references, with the gradients of both

Every row has a positive, so libraries that treat lonely rows differently agree on the loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from spcl_fast.pacing import relative_gamma
from spcl_fast.testing import make_embeddings, make_labels

Kind = Literal["self-paced", "supcon", "ntxent", "meta-labels", "bank"]
META_LABELS = {"position": 8, "patient": 50, "phase": 2}  # classes of each


@dataclass(frozen=True)
class Problem:
    """One problem; its inputs are the same in every process.

    Raises:
        ValueError: a field is out of range.
    """

    kind: Kind
    n: int
    """Rows, two views of n / 2 images; the anchors of a bank."""
    dim: int = 128
    classes: int = 64
    """Labels are drawn from this many; meta-labels has its own."""
    tau: float = 0.07
    pace: float = 1.5
    """Gamma of self-paced and meta-labels in units of log(n - 1)."""
    refs: int = 65536
    """References of a bank."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if self.n < 4 or self.n % 2:
            raise ValueError(f"n must be even and at least 4, got {self.n}")
        if min(self.dim, self.classes, self.refs) < 1:
            sizes = f"{self.dim}, {self.classes}, {self.refs}"
            raise ValueError(f"dim, classes and refs must be positive, got {sizes}")
        if not (0 < self.tau < math.inf and self.pace > 0):
            raise ValueError(f"tau and pace must be above 0, got {self.tau}, {self.pace}")

    @property
    def gamma(self) -> float:
        """The pace of the pair weights."""
        is_paced = self.kind in ("self-paced", "meta-labels")
        return relative_gamma(self.pace, self.n) if is_paced else math.inf

    @property
    def num_refs(self) -> int:
        """Rows that are no anchors."""
        return self.refs if self.kind == "bank" else 0

    @property
    def num_pairs(self) -> int:
        """Similarities of the dense matrix."""
        return self.n * (self.num_refs or self.n)

    @property
    def num_flops(self) -> int:
        """Flops of a forward and a backward that visit every pair once and recompute it.

        A similarity twice and its part of two gradients: 8 dim, 4 n^2 dim where n^2 / 2 pairs are
        the rest of them mirrored.
        """
        return 8 * self.dim * (self.num_pairs if self.num_refs else self.num_pairs // 2)

    def at_most(self, rows: int) -> Problem:
        """Return the problem cut to `rows` anchors, or as many pairs of a bank."""
        n = min(self.n, rows)
        return replace(self, n=n, refs=min(self.refs, max(1, rows**2 // n)))

    def embeddings(self) -> Tensor:
        """Return z, (n, dim) float32, unit rows; row i + n / 2 is the other view of row i.

        The references of a bank follow its anchors: (n + refs, dim).
        """
        return make_embeddings(self.n + self.num_refs, self.dim)

    def labels(self) -> Tensor:
        """Return the labels of the rows, (n,) int64."""
        if self.kind == "bank":
            return make_labels(self.n, min(self.classes, self.refs))
        num_images = self.n // 2
        own = self.kind == "ntxent"
        images = torch.arange(num_images) if own else make_labels(num_images, self.classes)
        return images.repeat(2)

    def ref_labels(self) -> Tensor:
        """Return the labels of the references, (refs,) int64: every class is there."""
        return torch.arange(self.refs) % self.classes

    def meta_labels(self) -> dict[str, Tensor]:
        """Return the three labels of the rows by name, (n,) int64 each."""
        images = {
            name: make_labels(self.n // 2, classes, seed=seed)
            for seed, (name, classes) in enumerate(META_LABELS.items())
        }
        return {name: labels.repeat(2) for name, labels in images.items()}
