"""What the losses return, and how it follows from the ops."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spcl_fast.operands import ContrastiveTerms, PositivePairLoss
from spcl_fast.pair_weights import Mode, has_unit_weights

LEAST_MEAN_WEIGHT = 0.05  # below it, gamma is taken to switch off the positive pairs
UNUSED_POSITIVES = (
    "gamma switches off more than 95 % of the positive pairs, or nearly so: their mean weight is "
    f"below {LEAST_MEAN_WEIGHT}; start the pace higher (docs/pace.md)"
)


class LabelTerm(NamedTuple):
    """The loss of one meta-label; every field is a 0-dim tensor on the device of the rows."""

    loss: Tensor
    """Mean over the rows with positives, before its weight lambda; differentiable."""
    objective: Tensor
    """Loss plus the pace term R, detached: what the pair weights minimise; never corrected."""
    mean_weight: Tensor
    """Sum of the pair weights over the number of positive pairs, 0 without any; detached."""
    num_anchors: Tensor
    """Number of rows with at least one positive, int64."""


class ContrastiveLossOutput(NamedTuple):
    """The loss and diagnostics of training; 0-dim tensors unless noted."""

    loss: Tensor
    """Differentiable."""
    objective: Tensor
    """Loss plus the pace term R, detached; equal to the loss where gamma is inf."""
    mean_weight: Tensor
    """Sum of the pair weights over the number of positive pairs, of all labels together."""
    num_anchors: Tensor
    """Number of rows with a positive under at least one label, int64."""
    collapse: Tensor
    """Mean cosine-like similarity of two rows: 1 when all are equal, about 0 when they spread."""
    lse: Tensor
    """(N,), detached: the log-sum-exp of every row."""
    terms: dict[str, LabelTerm]
    """One entry a label where labels were a dict, else empty."""

    def for_log(self) -> dict[str, float]:
        """Return loss, objective, mean_weight, num_anchors and collapse as numbers.

        The host waits for the device, once. Warns where gamma switches off the positive pairs.
        """
        values = torch.stack([figure.detach().float() for figure in self[:5]]).tolist()
        found = dict(zip(self._fields, values, strict=False))
        if found["num_anchors"] and found["mean_weight"] < LEAST_MEAN_WEIGHT:
            warnings.warn(UNUSED_POSITIVES, stacklevel=2)
        return found


def output_of(terms: ContrastiveTerms, names: Sequence[str]) -> ContrastiveLossOutput:
    """Return the output of a loss whose terms were computed in one op.

    Args:
        terms: of one or more labels.
        names: of the labels, where `terms` of the output has an entry for each.
    """
    of_labels = {}
    if names:
        of_labels = {
            name: LabelTerm(*of_label)
            for name, *of_label in zip(
                names,
                terms.losses.unbind(),
                terms.info[:-1, 0].unbind(),
                terms.info[:-1, 1].unbind(),
                terms.label_anchors[:-1].unbind(),
                strict=True,
            )
        }
    return ContrastiveLossOutput(*terms[:6], of_labels)


def mean_over_anchors(row_values: Tensor, num_pos: Tensor) -> Tensor:
    """Return the mean of `row_values` (N,) over the rows with positives, 0 if there are none.

    Rows without positives must hold 0.
    """
    return row_values.sum() / (num_pos > 0).sum().clamp_min(1)


def label_term(
    pairs: PositivePairLoss, gamma: float | Tensor, mode: Mode, *, correct_grad: bool = False
) -> LabelTerm:
    """Reduce the rows of one label to its term.

    Args:
        pairs: what `positive_pair_loss` returned for `gamma` and `mode`.
        gamma: pace.
        mode: "hard" or "linear".
        correct_grad: divide the loss by the mean weight where that is above 0, as the paper's
            authors do on request.
    """
    num_anchors = (pairs.num_pos > 0).sum()
    loss = pairs.loss.sum() / num_anchors.clamp_min(1)
    mean_weight = pairs.weight_sum.sum() / pairs.num_pos.sum().clamp_min(1)
    objective = loss.detach()
    if not has_unit_weights(gamma, None):
        share = (pairs.weight_sum / pairs.num_pos.clamp_min(1)).sum() / num_anchors.clamp_min(1)
        objective = _objective(objective, share, gamma, mode)
    if correct_grad:
        loss = loss / torch.where(mean_weight > 0, mean_weight, 1)
    return LabelTerm(loss, objective, mean_weight, num_anchors)


def _objective(loss: Tensor, share: Tensor, gamma: float | Tensor, mode: Mode) -> Tensor:
    """Return L + R from the loss and the mean over the anchors of a row's mean weight.

    Over the pairs of a row, hard: w l + R = w l - gamma w. Linear: w = 1 - l / gamma where it is
    not 0, so w l + R = w l + gamma (w^2 / 2 - w) = (w l - gamma w) / 2.
    """
    pace = gamma * share
    objective = loss - pace if mode == "hard" else (loss - pace) / 2
    if isinstance(gamma, Tensor):
        objective = torch.where(gamma.isinf(), loss, objective).detach()
    return objective


@torch.no_grad()
def collapse_index(z: Tensor) -> Tensor:
    """Return (|sum z|^2 - sum |z|^2) / ((N - 1) sum |z|^2), 0-dim float32 (float64 for float64).

    1 when all rows are equal, about 0 when they are spread, 0 for fewer than two rows.
    """
    z = z if z.dtype == torch.float64 else z.float()
    own = z.square().sum()
    pairs = z.sum(0).square().sum() - own
    scale = own * (z.shape[0] - 1)
    return torch.where(scale == 0, 0, pairs / scale)  # NaN where a row is
