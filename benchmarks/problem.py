"""The problems: a loss over two views of N / 2 images, forward and backward.

    self-paced   linear weights, gamma = pace log(N - 1), labels of the images
    supcon       the same at gamma = inf
    ntxent       every image is its own class: the other view is the only positive
    meta-labels  self-paced with three labels at once, META_LABELS
    bank         supcon of N anchors against labelled references, with the gradients of both
    infonce      N anchors against N references; the positive of anchor i is reference i
    clip         the mean of infonce and of infonce with the two sides exchanged
    siglip       every pair of anchor and reference on its own, by a sigmoid (arXiv:2303.15343)

Every row has a positive, so libraries that treat rows without positives differently agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from spcl_fast.pacing import relative_gamma
from spcl_fast.testing import make_embeddings, make_labels

Kind = Literal["self-paced", "supcon", "ntxent", "meta-labels", "bank", "infonce", "clip", "siglip"]
Dtype = Literal["float32", "bfloat16", "float16"]
DIAGONAL: tuple[Kind, ...] = ("infonce", "clip")
TWO_SIDED: tuple[Kind, ...] = (*DIAGONAL, "siglip")
SIGLIP_BIAS = -10.0  # what the paper begins with
META_LABELS = {"position": 8, "patient": 50, "phase": 2}  # classes of each


@dataclass(frozen=True)
class Problem:
    """One problem; its inputs are the same in every process.

    Raises:
        ValueError: a field is out of range.
    """

    kind: Kind
    n: int
    """Rows, two views of n / 2 images; the anchors where there are references."""
    dim: int = 128
    classes: int = 64
    """Labels are drawn from this many; meta-labels has its own."""
    tau: float = 0.07
    pace: float = 1.5
    """Gamma of self-paced and meta-labels in units of log(n - 1)."""
    refs: int = 65536
    """References of a bank."""
    dtype: Dtype = "float32"
    """Of the embeddings."""
    device: str = "cpu"
    """Of the embeddings and the labels."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if self.dtype not in get_args(Dtype):
            names = ", ".join(get_args(Dtype))
            raise ValueError(f"dtype must be one of {names}, got {self.dtype!r}")
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
        """Rows that are not anchors."""
        if self.kind in TWO_SIDED:
            return self.n
        return self.refs if self.kind == "bank" else 0

    @property
    def num_pairs(self) -> int:
        """Similarities of the dense matrix."""
        return self.n * (self.num_refs or self.n)

    @property
    def num_flops(self) -> int:
        """Flops of a forward and a backward that visit every pair once and recompute it.

        A pair costs 8 dim: its similarity twice and its part of two gradients. In a square matrix
        the other half of the pairs is mirrored: 4 n^2 dim.
        """
        return 8 * self.dim * (self.num_pairs if self.num_refs else self.num_pairs // 2)

    @property
    def num_bytes(self) -> int:
        """Bytes that must move: the embeddings once per direction, the gradient once."""
        return 3 * (self.n + self.num_refs) * self.dim * self.torch_dtype.itemsize

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the embeddings."""
        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype)
        return found

    @property
    def is_half(self) -> bool:
        """Whether the embeddings have 16 bits."""
        return self.torch_dtype.itemsize == 2

    def at_most(self, rows: int) -> Problem:
        """Return the problem cut to `rows` anchors, or for a bank to as many pairs."""
        n = min(self.n, rows)
        return replace(self, n=n, refs=min(self.refs, max(1, rows**2 // n)))

    def embeddings(self) -> Tensor:
        """Return z, (n, dim), unit rows; row i + n / 2 is the other view of row i.

        References follow their anchors: (n + refs, dim).
        """
        rows = self.n + self.num_refs
        return make_embeddings(rows, self.dim, dtype=self.torch_dtype, device=self.device)

    def labels(self) -> Tensor:
        """Return the labels of the rows, (n,) int64."""
        if self.kind in TWO_SIDED:
            return torch.arange(self.n, device=self.device)
        if self.kind == "bank":
            return make_labels(self.n, min(self.classes, self.refs), device=self.device)
        num_images = self.n // 2
        own = self.kind == "ntxent"
        images = torch.arange(num_images) if own else make_labels(num_images, self.classes)
        return images.repeat(2).to(self.device)

    def ref_labels(self) -> Tensor:
        """Return the labels of the references, (refs,) int64, with every class present."""
        classes = self.n if self.kind in TWO_SIDED else self.classes
        return torch.arange(self.num_refs, device=self.device) % classes

    def meta_labels(self) -> dict[str, Tensor]:
        """Return the three labels of the rows by name, (n,) int64 each."""
        images = {
            name: make_labels(self.n // 2, classes, seed=seed)
            for seed, (name, classes) in enumerate(META_LABELS.items())
        }
        return {name: labels.repeat(2).to(self.device) for name, labels in images.items()}
