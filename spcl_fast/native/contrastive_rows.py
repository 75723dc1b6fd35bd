"""The gradient of `contrastive_rows`: labels with linear weights join the dense gradient."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from spcl_fast.native.pair_lse import pair_lse_bwd
from spcl_fast.native.positive_pair_loss import positive_pair_loss_bwd
from spcl_fast.operands import Label, LabelGradient, Lse, Pairs
from spcl_fast.pair_weights import Mode, has_unit_weights
from spcl_fast.precision import dtype_of_results


def contrastive_rows_bwd(
    pairs: Pairs,
    lse: Lse,
    dlse: Tensor,  # (N,)
    gradients: Sequence[LabelGradient],
    mode: Mode,
) -> Tensor:
    """Return dz (N, D), float32 if several are added; dlse holds what the labels add to it."""
    joined: list[LabelGradient] = []
    alone: list[LabelGradient] = []
    for x in gradients:
        (joined if _joins(x.label, mode) else alone).append(x)
    dz, _ = pair_lse_bwd(pairs, lse, dlse, None, joined, needs_z=True, needs_refs=False)
    assert dz is not None
    for label, c in alone:
        part, _ = positive_pair_loss_bwd(
            c, pairs, lse.rows, label, mode, needs_z=True, needs_refs=False
        )
        assert part is not None
        dz = dz.to(dtype_of_results(pairs.z)).add_(part)
    return dz


def _joins(label: Label, mode: Mode) -> bool:
    """Return whether the dense gradient takes the label along; class sums are cheaper still."""
    if mode == "hard" or label.window is not None:
        return False
    return not has_unit_weights(label.gamma, None)
