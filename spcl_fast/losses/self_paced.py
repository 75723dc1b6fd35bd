"""The self-paced contrastive loss over one or more meta-labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from spcl_fast.distributed import num_ranks
from spcl_fast.losses._batch_rows import batch_rows
from spcl_fast.losses._by_name import bank_labels_by_name, by_name, windows_by_name
from spcl_fast.losses._temperature import Temperature, tau_of
from spcl_fast.losses.result import (
    ContrastiveLossOutput,
    LabelTerm,
    collapse_index,
    label_term,
    output_of,
)
from spcl_fast.ops import Impl, Label, PositivePairLoss, contrastive_terms
from spcl_fast.ops._checks import as_number
from spcl_fast.pacing import Pace, RelativePace
from spcl_fast.pair_weights import Mode, check_mode, has_unit_weights

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class SelfPacedContrastiveLoss(nn.Module):
    """Supervised contrastive loss whose positive pairs enter from easy to hard.

        l_ij = lse_i - z_i . z_j / tau              lse_i = log sum_{a != i} exp(z_i . z_a / tau)
        w_ij = 1[l_ij <= gamma]  or  max(0, 1 - l_ij / gamma)
        L    = mean_i 1/|P(i)| sum_{j in P(i)} w_ij l_ij     over the rows with positives

    (arXiv:2107.13741.) With several meta-labels, L = sum_k lambda_k L_k, each with its own gamma,
    and lse is computed once. Memory is O(N D); nothing is copied to the host, so a gamma that
    changes every step costs no synchronisation.

    Example:
        >>> loss = SelfPacedContrastiveLoss(tau=0.07, mode="linear")
        >>> out = loss(z, {"position": position, "patient": patient}, gamma={"position": 5.0, ...})
        >>> out.loss.backward()
        >>> loss = SelfPacedContrastiveLoss(pace=RelativePace(steps=10_000))  # steps by itself

    Args:
        tau: temperature.
        mode: "hard" or "linear".
        correct_grad: divide the loss of a label by its mean weight where that is above 0.
        window: a label's positives are `|y_i - y_j| <= window` instead of equal labels; a dict by
            label name sets it for some labels only.
        learnable_tau: make log tau a parameter that starts at `tau`.
        pace: `RelativePace` or `AbsolutePace` of `spcl_fast.pacing`, one for all labels or a dict
            by label name; gamma is then left out of the calls. Every call in training mode
            with gradients is a step.
        impl: implementation of the ops.
        group: process group whose ranks bring the rows of one batch together; None for this
            process alone. Every rank computes 1 / W of the pairs and returns the loss of the
            whole batch; its gradient is scaled for DistributedDataParallel to average
            (docs/distributed.md). All ranks must call forward, and backward on the same terms of
            the output: if one does not, the others wait for the timeout of the group.

    Raises:
        TypeError: `tau` is not a number, or `pace` is not a pace.
        ValueError: `tau` or `mode` does not fit.
    """

    def __init__(
        self,
        tau: float = 0.07,
        mode: Mode = "linear",
        *,
        correct_grad: bool = False,
        window: float | Mapping[str, float | None] | None = None,
        learnable_tau: bool = False,
        pace: Pace | Mapping[str, Pace] | None = None,
        impl: Impl = "auto",
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_mode(mode)
        if pace is not None and not isinstance(pace, (Pace, Mapping)):
            raise TypeError(f"pace must be a Pace or a dict of them, got {pace!r}")
        self.temperature = Temperature(tau, learnable=learnable_tau)
        self.mode: Mode = mode
        self.correct_grad = correct_grad
        self.window = window
        self.pace = nn.ModuleDict(pace) if isinstance(pace, Mapping) else pace
        self.impl: Impl = impl
        self.group = group

    def forward(
        self,
        z: Tensor,
        labels: Tensor | Mapping[str, Tensor],
        gamma: float | Tensor | Mapping[str, float | Tensor] = math.inf,
        weight: float | Mapping[str, float] = 1.0,
        *,
        bank: Tensor | None = None,
        bank_labels: Tensor | Mapping[str, Tensor] | None = None,
    ) -> ContrastiveLossOutput:
        """Compute the loss.

        Args:
            z: (N, D), floating, rows L2-normalised by the caller; N may differ between the ranks
                of a group, and be 0.
            labels: (N,), integer (any real dtype with a window), below 0 where unknown; or a
                non-empty dict of them by name.
            gamma: pace, above 0, inf for plain SupCon; one for all labels or a dict by name. The
                gamma of the step where the loss has a `pace`. A tensor is not read: if it is not
                above 0, the loss is NaN.
            weight: lambda; one for all labels or a dict by name.
            bank: (M, D), dtype and device of `z`: memory of further rows that the anchors, the rows
                of `z`, are compared with, as negatives and positives. The same on every rank.
            bank_labels: (M,), or a dict of them by name, as `labels`.

        Returns:
            A `ContrastiveLossOutput`, with lse of the rows of this rank and all else of the whole
            batch; its loss is differentiable in `z`, `bank` and a learnable tau.

        Raises:
            TypeError: a dtype does not fit.
            ValueError: a shape, a device or a range does not fit; the names of a dict are not those
                of `labels`; the ranks differ in what must be the same.
        """
        # first what is quick: asking for an abstract class costs as much as a small kernel
        is_dict = not isinstance(labels, Tensor) and isinstance(labels, Mapping)
        named = cast("Mapping[str, Tensor]", labels if is_dict else {"": labels})
        if not named:
            raise ValueError("labels must name at least one label, got an empty dict")
        if self.pace is not None:
            gamma = self._step_pace(self.pace, gamma, z, bank)
        gammas = by_name("gamma", gamma, named, is_dict=is_dict)
        lambdas = by_name("weight", weight, named, is_dict=is_dict)
        windows = windows_by_name(self.window, named, is_dict=is_dict)
        banks = bank_labels_by_name(bank, bank_labels, named, is_dict=is_dict)
        tau = tau_of(self)
        paced: list[Label] = []
        factors: list[float | Tensor] = []
        for name, y in named.items():
            number = as_number("gamma", gammas[name], z)
            paced.append(Label(y, number, windows[name], banks.get(name)))
            factors.append(as_number("weight", lambdas[name]))
        if num_ranks(self.group) == 1:
            fused = contrastive_terms(
                z,
                tau,
                paced,
                factors,
                mode=self.mode,
                correct_grad=self.correct_grad,
                bank=bank,
                impl=self.impl,
            )
            if fused is not None:
                return output_of(fused, list(named) if is_dict else [])
        rows = batch_rows(
            z, tau, paced, mode=self.mode, bank=bank, impl=self.impl, group=self.group
        )
        terms = {
            name: label_term(pairs, label.gamma, self.mode, correct_grad=self.correct_grad)
            for name, pairs, label in zip(named, rows.pairs, paced, strict=True)
        }
        weighted = list(zip(terms.values(), factors, strict=True))
        mean_weight, num_anchors = _of_all_labels(rows.pairs, list(terms.values()))
        return ContrastiveLossOutput(
            loss=_total([term.loss * factor for term, factor in weighted]),
            objective=_total([term.objective * factor for term, factor in weighted]),
            mean_weight=mean_weight,
            num_anchors=num_anchors,
            collapse=collapse_index(rows.z),
            lse=rows.lse,
            terms=terms if is_dict else {},
        )

    def _step_pace(
        self,
        pace: Pace | nn.ModuleDict,
        gamma: float | Tensor | Mapping[str, float | Tensor],
        z: Tensor,
        bank: Tensor | None,
    ) -> float | dict[str, float]:
        """Return the gamma of the pace, and count a step of the training."""
        if isinstance(gamma, Mapping) or not has_unit_weights(gamma, None):
            raise ValueError(f"gamma must be left out of a loss with a pace, got {gamma}")
        paces = cast(
            "dict[str, Pace]", {"": pace} if isinstance(pace, Pace) else dict(pace.items())
        )
        unknown = [x for x in paces.values() if isinstance(x, RelativePace) and not x.num_rows]
        if unknown and num_ranks(self.group) > 1:
            raise ValueError("num_rows must be given to a RelativePace with a group, got None")
        num_rows = z.shape[0] + (0 if bank is None else bank.shape[0])
        gammas = {name: x.gamma(num_rows) for name, x in paces.items()}
        if self.training and torch.is_grad_enabled():
            for x in set(paces.values()):
                x.step()
        return gammas[""] if isinstance(pace, Pace) else gammas


def _total(values: list[Tensor]) -> Tensor:
    """Return the sum of 0-dim tensors; a single one costs nothing."""
    return values[0] if len(values) == 1 else torch.stack(values).sum()


def _of_all_labels(pairs: list[PositivePairLoss], terms: list[LabelTerm]) -> tuple[Tensor, Tensor]:
    """Return mean_weight and num_anchors of all labels together."""
    if len(terms) == 1:
        return terms[0].mean_weight, terms[0].num_anchors
    num_pos = torch.stack([x.num_pos for x in pairs])  # (labels, N)
    weight_sum = torch.stack([x.weight_sum for x in pairs])
    return weight_sum.sum() / num_pos.sum().clamp_min(1), (num_pos > 0).any(0).sum()
