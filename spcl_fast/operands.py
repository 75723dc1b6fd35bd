"""The tuples passed from the losses to the kernels, for N rows, M references and D features.

Tuples, so that autograd, torch.func and torch.compile find the tensors inside.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Label(NamedTuple):
    """A label of the rows and the weights of its positive pairs."""

    values: Tensor
    """(N,). Rows of equal integers are positives of each other; values below 0 are unknown."""
    gamma: float | Tensor = math.inf
    """Pace, above 0, inf for weights of 1: a number or a 0-dim floating tensor."""
    window: float | None = None
    """If given, positive means `|y_i - y_j| <= window`, for values of any real dtype."""
    ref_values: Tensor | None = None
    """(M,), values of the references, such as a memory bank."""


class Pairs(NamedTuple):
    """Rows and what they are compared with: sim_ij = z_i . r_j / tau."""

    z: Tensor
    """(N, D)."""
    refs: Tensor | None
    """(M, D), or None for the rows themselves, j != i."""
    tau: float | Tensor
    """Temperature, a number or a 0-dim floating tensor."""


class Lse(NamedTuple):
    """Log-sum-exps of both sides."""

    rows: Tensor
    """(N,), over the references or the other rows."""
    refs: Tensor | None
    """(M,), over the rows, if there are references."""
    cache: Tensor | None = None
    """What an implementation carries from its forward to its backward."""


class PositivePairLoss(NamedTuple):
    """What `positive_pair_loss` returns, one value per row."""

    loss: Tensor
    """(N,) float32 or float64, differentiable; 0 in a row without positives."""
    weight_sum: Tensor
    """(N,) as `loss`, not differentiable: the sum of the weights of the row's positives."""
    num_pos: Tensor
    """(N,) int64: the number of positives."""


class ContrastiveTerms(NamedTuple):
    """What a loss over K labels of N rows comes to; first what `ContrastiveLossOutput` has."""

    loss: Tensor
    """(), the sum over the labels of lambda times their loss; differentiable."""
    objective: Tensor
    """(), detached, as all that follows but `losses`; of all labels together."""
    mean_weight: Tensor
    """()."""
    num_anchors: Tensor
    """() int64: rows with positives under any label."""
    collapse: Tensor
    """()."""
    lse: Tensor
    """(N,)."""
    losses: Tensor
    """(K,), the mean over the anchors of each label; differentiable."""
    info: Tensor
    """(K + 1, 3): objective and mean weight of each label; the last line is that of all."""
    label_anchors: Tensor
    """(K + 1,) int64: rows with positives under each label, and under any."""

    @classmethod
    def of(
        cls, loss: Tensor, losses: Tensor, lse: Tensor, info: Tensor, label_anchors: Tensor
    ) -> ContrastiveTerms:
        """Return the terms, what is of all labels together as views."""
        objective, mean_weight, collapse = info[-1].unbind()
        total = loss, objective, mean_weight, label_anchors[-1], collapse
        return cls(*total, lse, losses, info, label_anchors)


class InfoNCETerms(NamedTuple):
    """What InfoNCE comes to, as `ContrastiveLossOutput` has it."""

    loss: Tensor
    """(), differentiable."""
    objective: Tensor
    """(), the loss, detached, as all that follows."""
    mean_weight: Tensor
    """(), 1."""
    num_anchors: Tensor
    """() int64, N."""
    collapse: Tensor
    """(), of the anchors."""
    lse: Tensor
    """(N,), of the anchors."""


class Piece(NamedTuple):
    """Where a tensor lies in a memory."""

    offset: int
    """In bytes."""
    shape: torch.Size
    dtype: torch.dtype


class Kept(NamedTuple):
    """What a fused implementation carries from its forward to its backward."""

    memory: tuple[Tensor | None, ...]
    """The tensors, or one memory of bytes that they all lie in."""
    pieces: tuple[Piece | None, ...] | None = None
    """Where, in one memory."""

    @property
    def present(self) -> tuple[Tensor, ...]:
        """What there is of the memory."""
        return tuple([x for x in self.memory if x is not None])

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return the tensors."""
        if self.pieces is None:
            return self.memory
        (memory,) = self.memory
        return tuple([None if x is None else _piece(memory, x) for x in self.pieces])


def _piece(memory: Tensor | None, piece: Piece) -> Tensor:
    assert memory is not None
    num_bytes = piece.shape.numel() * piece.dtype.itemsize
    part = memory[piece.offset : piece.offset + num_bytes]
    return part.view(piece.dtype).view(piece.shape)


class LabelGradient(NamedTuple):
    """A label and the gradient of the losses of its rows."""

    label: Label
    c: Tensor
    """(N,), dloss_i / |P(i)|."""


class Gradients(NamedTuple):
    """Gradients of both sides, None where not needed."""

    z: Tensor | None
    """(N, D)."""
    refs: Tensor | None
    """(M, D)."""
