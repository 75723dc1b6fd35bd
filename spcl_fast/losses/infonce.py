"""InfoNCE between anchors and references: two towers, a memory bank, a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spcl_fast.distributed import infonce_rows, num_ranks
from spcl_fast.losses._temperature import Temperature, tau_of
from spcl_fast.losses.result import ContrastiveLossOutput, collapse_index, mean_over_anchors
from spcl_fast.ops import Impl, PositivePairLoss, infonce_terms, pair_lse
from spcl_fast.ops._checks import check_refs, check_rows, check_tensor
from spcl_fast.ops._impl import resolve_for, rows_for
from spcl_fast.ops.composed.diagonal_pairs import diagonal_pairs

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class InfoNCELoss(nn.Module):
    """InfoNCE (arXiv:1807.03748); symmetric, the loss of CLIP (arXiv:2103.00020).

        rows     L_a = mean_i  log sum_j exp(a_i . r_j / tau) - a_i . r_i / tau
        columns  L_r = mean_i  log sum_j exp(a_j . r_i / tau) - a_i . r_i / tau
        L = (L_a + L_r) / 2 if symmetric and there are as many references as anchors, else L_a

    Both log-sum-exps come from one visit of the similarities, and the diagonal costs O(N D).

    Example:
        >>> loss = InfoNCELoss(tau=0.07)
        >>> loss(image_features, text_features).loss.backward()

    Args:
        tau: temperature.
        symmetric: average both directions. If there are more references than anchors, the
            additional ones are negatives alone, and only the direction from the anchors is used.
        learnable_tau: make log tau a parameter that starts at `tau`.
        impl: implementation of the ops.
        group: process group whose ranks bring the pairs of one batch together, as for
            `SelfPacedContrastiveLoss`; None for this process alone. Additional references must
            be the same on every rank, and are not gathered.

    Raises:
        ValueError: `tau` is not finite and above 0.
    """

    def __init__(
        self,
        tau: float = 0.07,
        symmetric: bool = True,
        *,
        learnable_tau: bool = False,
        impl: Impl = "auto",
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.temperature = Temperature(tau, learnable=learnable_tau)
        self.symmetric = symmetric
        self.impl: Impl = impl
        self.group = group

    def forward(self, anchors: Tensor, refs: Tensor) -> ContrastiveLossOutput:
        """Compute the loss.

        Args:
            anchors: (N, D), floating, rows L2-normalised by the caller.
            refs: (M, D) with M >= N, dtype and device of `anchors`; row i < N is the positive of
                anchor i, the rows from N on are negatives of all.

        Returns:
            A `ContrastiveLossOutput` with lse (N,) and collapse of the anchors; its loss is
            differentiable in both inputs and a learnable tau.

        Raises:
            TypeError: the inputs are not floating, or their dtypes differ.
            ValueError: there are fewer references than anchors; a shape or a device does not fit.
        """
        check_tensor("anchors", anchors)
        check_tensor("refs", refs)
        N, M = anchors.shape[0], refs.shape[0]
        if M < N:
            raise ValueError(f"refs must have at least as many rows as anchors, {N}, got {M}")
        is_symmetric = self.symmetric and M == N
        tau = tau_of(self)
        if num_ranks(self.group) > 1:
            rows = infonce_rows(
                anchors,
                refs,
                tau,
                symmetric=is_symmetric,
                group=self.group,
                impl=self.impl,
            )
            return _output(rows.anchors, rows.lse, rows.pairs)
        terms = infonce_terms(anchors, refs, tau, symmetric=is_symmetric, impl=self.impl)
        if terms is not None:
            return ContrastiveLossOutput(*terms, {})
        check_rows("anchors", anchors)
        check_refs(anchors, refs, rows="anchors")
        name = resolve_for(self.impl, anchors)
        # once, so that the gradients of both terms add up in float32
        anchors, refs = (rows_for(name, x, None)[0] for x in (anchors, refs))
        lse, lse_refs = pair_lse(anchors, tau, refs=refs, impl=self.impl)
        pairs = [diagonal_pairs(anchors, lse, refs, tau, self.impl)]
        if is_symmetric:
            pairs.append(diagonal_pairs(refs, lse_refs, anchors, tau, self.impl))
        return _output(anchors, lse.detach(), pairs)


def _output(anchors: Tensor, lse: Tensor, pairs: list[PositivePairLoss]) -> ContrastiveLossOutput:
    """Return the mean over the directions; all else describes the first, from the anchors."""
    directions = [mean_over_anchors(x.loss, x.num_pos) for x in pairs]
    loss = torch.stack(directions).mean()
    num_pairs = pairs[0].num_pos.sum()
    return ContrastiveLossOutput(
        loss=loss,
        objective=loss.detach(),
        mean_weight=pairs[0].weight_sum.sum() / num_pairs.clamp_min(1),
        num_anchors=num_pairs,
        collapse=collapse_index(anchors),
        lse=lse,
        terms={},
    )
