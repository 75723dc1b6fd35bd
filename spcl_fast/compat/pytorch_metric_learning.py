"""`SupConLoss` and `NTXentLoss` of pytorch-metric-learning, without N x N matrices.

Compared with pytorch-metric-learning 2.9.0. What differs:

- `distance` is None (cosine similarity), `CosineSimilarity()` or `DotProductSimilarity()` with
  power 1; embedding regularizers and `collect_stats` are not supported.
- `reducer` may be any for `SupConLoss`; for `NTXentLoss` without an `indices_tuple` it is
  `MeanReducer`, since any other needs one value per positive pair.
- `NTXentLoss` adds no smallest number in its logarithm; theirs caps a loss at 87 in float32.
- With `indices_tuple`, memory is of the order of the tuple, and an invalid one is a ValueError.
- `CrossBatchMemory` wraps these losses unchanged. `DistributedLossWrapper` accepts only subclasses
  of its own base class: give `spcl_fast.SupConLoss` a process group instead.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from spcl_fast.compat._labels import class_indices
from spcl_fast.compat._pairs import lse_by_anchor, pair_similarities
from spcl_fast.compat._positive_rows import PositiveRows
from spcl_fast.compat._temperature import check_temperature
from spcl_fast.ops import Impl, Label, contrastive_rows, pair_lse, positive_pair_loss
from spcl_fast.ops._checks import check_rows, check_tensor
from spcl_fast.precision import at_least_float32

Pairs = tuple[Tensor, Tensor, Tensor, Tensor]  # anchors and positives, anchors and negatives


class _PairLoss(nn.Module):
    """What the two losses share: arguments, normalisation, pairs, reduction.

    Args:
        temperature: tau.
        reducer: None for the loss's own.
        distance: None for cosine similarity.
        impl: implementation of the ops.
        kwargs: others of the library's, at their defaults.

    Raises:
        ValueError: an argument is not supported.
    """

    def __init__(
        self,
        temperature: float,
        *,
        reducer: Any = None,
        distance: Any = None,
        impl: Impl = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__()
        for name, value in kwargs.items():
            if value and name != "embedding_reg_weight":
                raise ValueError(f"{name} must be left at its default here, got {value!r}")
        kind = type(distance).__name__
        if distance is not None and (
            kind not in ("CosineSimilarity", "DotProductSimilarity") or distance.power != 1
        ):
            raise ValueError(
                f"distance must be cosine or dot-product similarity of power 1, got {kind}"
            )
        check_temperature("temperature", temperature)
        self.temperature = temperature
        self.distance = distance
        self.reducer = copy.deepcopy(reducer)
        self.impl: Impl = impl

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            embeddings: (N, D), floating, rows of any norm.
            labels: (N,), of any dtype; equal ones are positive.
            indices_tuple: anchors, positives, anchors, negatives, or anchors, positives, negatives:
                the only pairs that count.
            ref_emb: (M, D), to compare with instead of with the embeddings.
            ref_labels: (M,), with `ref_emb`.

        Returns:
            The loss, 0-dim with the default reducers, differentiable in `embeddings` and `ref_emb`.

        Raises:
            TypeError: the embeddings are not floating.
            ValueError: labels and pairs are both missing, a shape does not fit, a pair is positive
                and negative.
        """
        if labels is None and indices_tuple is None:
            raise ValueError("labels or indices_tuple must be given, got neither")
        refs = embeddings if ref_emb is None else ref_emb
        if ref_emb is None:
            ref_labels = labels
        for name, y, rows in (("labels", labels, embeddings), ("ref_labels", ref_labels, refs)):
            check_rows("embeddings" if rows is embeddings else "ref_emb", rows)
            if y is None:
                continue
            check_tensor(name, y)
            if y.shape != rows.shape[:1]:
                raise ValueError(f"{name} must be ({rows.shape[0]},), got {tuple(y.shape)}")
        z = self._normalised(embeddings)
        others = z if refs is embeddings else self._normalised(refs)
        if indices_tuple is None:
            if ref_labels is None or (ref_labels is labels and refs is not embeddings):
                raise ValueError(
                    "ref_labels must be given with ref_emb, as another tensor than labels"
                )
            assert labels is not None
            is_square = refs is embeddings and ref_labels is labels
            y, ref_y = class_indices(labels.to(z.device), ref_labels.to(z.device))
            return self._of_labels(z, None if is_square else others, y, ref_y, embeddings, labels)
        pairs = _as_pairs(indices_tuple, z.device)
        if all(len(x) <= 1 for x in pairs) or 0 in (len(pairs[0]), len(pairs[2])):
            return z.sum() * 0
        return self._of_pairs(z, others, pairs, embeddings, labels)

    def _normalised(self, x: Tensor) -> Tensor:
        x = at_least_float32(x)
        return normalize(x, dim=1) if self.distance is None else self.distance.maybe_normalize(x)

    def _of_labels(
        self, z: Tensor, refs: Tensor | None, y: Tensor, ref_y: Tensor, embeddings: Any, labels: Any
    ) -> Tensor:
        raise NotImplementedError

    def _of_pairs(
        self, z: Tensor, refs: Tensor, pairs: Pairs, embeddings: Any, labels: Any
    ) -> Tensor:
        raise NotImplementedError

    def _reduced(
        self, losses: Tensor, indices: Any, kind: str, embeddings: Any, labels: Any
    ) -> Any:
        entry = {"losses": losses, "indices": indices, "reduction_type": kind}
        return self.reducer({"loss": entry}, embeddings, labels)


class SupConLoss(_PairLoss):
    """Supervised contrastive loss (arXiv:2004.11362), mean over the rows whose loss is not 0.

        L = mean_i lse_i - mean_{j in P(i)} z_i . z_j / temperature      z normalised here

    As there, the loss is 0 without any positive or without any negative pair.

    Example:
        >>> loss = SupConLoss(temperature=0.1)
        >>> loss(embeddings, labels).backward()
    """

    def __init__(self, temperature: float = 0.1, **kwargs: Any) -> None:
        super().__init__(temperature, **kwargs)

    def _of_labels(
        self, z: Tensor, refs: Tensor | None, y: Tensor, ref_y: Tensor, embeddings: Any, labels: Any
    ) -> Tensor:
        tau, impl = self.temperature, self.impl
        options: dict[str, Any] = {"mode": "linear", "impl": impl}
        if refs is None:
            _, (rows,) = contrastive_rows(z, tau, [Label(y)], **options)
        else:
            lse, _ = pair_lse(z, tau, refs=refs, impl=impl)
            rows = positive_pair_loss(
                z, lse, y, tau=tau, gamma=math.inf, refs=refs, ref_labels=ref_y, **options
            )
        counts = _has_enough_pairs(rows.num_pos.sum(), z, refs)
        return self._mean(torch.where(counts, rows.loss, 0), embeddings, labels)

    def _of_pairs(
        self, z: Tensor, refs: Tensor, pairs: Pairs, embeddings: Any, labels: Any
    ) -> Tensor:
        N, M = z.shape[0], refs.shape[0]
        positive = torch.unique(pairs[0] * M + pairs[1])
        negative = torch.unique(pairs[2] * M + pairs[3])
        if torch.isin(positive, negative).any():
            raise ValueError("indices_tuple must hold a pair as positive or negative, got both")
        pair = torch.cat([positive, negative])
        sim = pair_similarities(z, refs, pair // M, pair % M) / self.temperature
        lse = lse_by_anchor(sim, pair // M, N)
        anchor = positive // M
        count = torch.zeros_like(lse).index_add(0, anchor, torch.ones_like(sim[: len(positive)]))
        mean = torch.zeros_like(lse).index_add(0, anchor, sim[: len(positive)]) / count.clamp_min(1)
        return self._mean(torch.where(count > 0, lse - mean, 0), embeddings, labels)

    def _mean(self, losses: Tensor, embeddings: Any, labels: Any) -> Tensor:
        if self.reducer is not None:
            indices = torch.arange(len(losses), device=losses.device)
            reduced: Tensor = self._reduced(losses, indices, "element", embeddings, labels)
            return reduced
        counts = losses > 0
        return torch.where(counts, losses, 0).sum() / counts.sum().clamp_min(1)


class NTXentLoss(_PairLoss):
    """NT-Xent as that library defines it: other positives of an anchor are in no denominator.

        L = mean over positive pairs ij of  log(1 + exp(nlse_i - s_ij))
        nlse_i = log sum_{negatives a of i} exp(s_ia)      s = z_i . z_j / temperature

    Similarities are computed by panels of rows, which the backward recomputes; with two rows per
    class it is the loss of `spcl_fast.NTXentLoss`, which is faster.

    Example:
        >>> loss = NTXentLoss(temperature=0.07)
        >>> loss(embeddings, labels).backward()
    """

    def __init__(self, temperature: float = 0.07, **kwargs: Any) -> None:
        super().__init__(temperature, **kwargs)

    def _of_labels(
        self, z: Tensor, refs: Tensor | None, y: Tensor, ref_y: Tensor, embeddings: Any, labels: Any
    ) -> Tensor:
        if self.reducer is not None and type(self.reducer).__name__ != "MeanReducer":
            raise ValueError(
                "reducer must be MeanReducer without an indices_tuple, "
                f"got {type(self.reducer).__name__}"
            )
        others = z if refs is None else refs
        rows = PositiveRows.apply(  # type: ignore[no-untyped-call]
            z, others, y, ref_y, self.temperature, refs is None
        )
        total, num_pos = (x.sum() for x in rows)
        counts = _has_enough_pairs(num_pos, z, refs)
        return torch.where(counts, total / num_pos.clamp_min(1), 0)

    def _of_pairs(
        self, z: Tensor, refs: Tensor, pairs: Pairs, embeddings: Any, labels: Any
    ) -> Tensor:
        anchor, positive, negative_anchor, negative = pairs
        sim = pair_similarities(z, refs, anchor, positive) / self.temperature
        others = pair_similarities(z, refs, negative_anchor, negative) / self.temperature
        nlse = lse_by_anchor(others, negative_anchor, z.shape[0])
        losses = softplus(nlse[anchor] - sim, threshold=40)
        if self.reducer is None:
            return losses.mean()
        indices = (anchor, positive)
        reduced: Tensor = self._reduced(losses, indices, "pos_pair", embeddings, labels)
        return reduced


def _as_pairs(indices_tuple: tuple[Tensor, ...], device: torch.device) -> Pairs:
    if len(indices_tuple) not in (3, 4):
        raise ValueError(f"indices_tuple must hold 3 or 4 tensors, got {len(indices_tuple)}")
    for x in indices_tuple:
        if x.ndim != 1 or (x.is_floating_point() and x.numel() > 0):
            raise ValueError(
                f"indices_tuple must hold integer tensors (pairs,), got {x.dtype} {tuple(x.shape)}"
            )
    anchor, positive, *others = (x.to(device) for x in indices_tuple)
    pairs = anchor, positive, *(others if len(others) == 2 else (anchor, *others))
    for first, second in (pairs[:2], pairs[2:]):
        if first.shape != second.shape:
            raise ValueError(
                "indices_tuple must hold as many anchors as others, "
                f"got {tuple(first.shape)} and {tuple(second.shape)}"
            )
    return pairs


def _has_enough_pairs(num_pos: Tensor, z: Tensor, refs: Tensor | None) -> Tensor:
    """Return whether there are positive and negative pairs, and more than one of a kind."""
    N = z.shape[0]
    num_neg = N * ((N - 1) if refs is None else refs.shape[0]) - num_pos
    return (num_pos > 0) & (num_neg > 0) & ((num_pos > 1) | (num_neg > 1))
