"""`contrastive_rows`: labels that share the passes of others over the pairs.

On a CPU those with linear weights join the gradient of `pair_lse`; on a GPU all labels share one
pass forward and one backward (csrc/cuda/contrastive_rows.cu).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spcl_fast.native._scalar import as_tensor
from spcl_fast.native.pair_lse import pair_lse_bwd, pair_lse_fwd
from spcl_fast.native.positive_pair_loss import positive_pair_loss_bwd, positive_pair_loss_fwd
from spcl_fast.operands import Label, LabelGradient, Lse, Pairs, PositivePairLoss
from spcl_fast.pair_weights import Mode, has_unit_weights
from spcl_fast.precision import dtype_of_results

# As in csrc/cuda/labels.cuh.
_MOST_LABELS = 8


def contrastive_rows_fwd(
    pairs: Pairs, labels: Sequence[Label], mode: Mode, *, has_backward: bool
) -> tuple[Lse, list[PositivePairLoss]]:
    """Return the log-sum-exps, and the losses of every label."""
    if pairs.z.is_cpu or not 1 <= len(labels) <= _MOST_LABELS:
        lse = pair_lse_fwd(pairs, has_backward=has_backward)
        return lse, [positive_pair_loss_fwd(pairs, lse.rows, x, mode) for x in labels]
    rows, *losses, order = torch.ops.spcl_fast.contrastive_rows_fwd_native(
        pairs.z,
        as_tensor(pairs.tau),
        [label.values for label in labels],
        [as_tensor(label.gamma) for label in labels],
        flat_windows(labels),
        mode == "hard",
    )
    return Lse(rows, None, order), [PositivePairLoss(*x) for x in zip(*losses, strict=True)]


def contrastive_rows_bwd(
    pairs: Pairs,
    lse: Lse,
    dlse: Tensor,  # (N,)
    gradients: Sequence[LabelGradient],
    mode: Mode,
) -> Tensor:
    """Return dz (N, D), float32 if several are added; dlse holds what the labels add to it."""
    if pairs.z.is_cpu:
        joined = [x for x in gradients if joins(x.label, mode)]
        alone = [x for x in gradients if not joins(x.label, mode)]
        part, _ = pair_lse_bwd(pairs, lse, dlse, None, joined, needs_z=True, needs_refs=False)
        assert part is not None
        dz = part
    else:
        joined, alone = list(gradients[:_MOST_LABELS]), list(gradients[_MOST_LABELS:])
        labels = [label for label, _ in joined]
        dz = torch.ops.spcl_fast.contrastive_rows_bwd_native(
            pairs.z,
            lse.rows,
            dlse,
            as_tensor(pairs.tau),
            [label.values for label in labels],
            [c for _, c in joined],
            [as_tensor(label.gamma) for label in labels],
            flat_windows(labels),
            mode == "hard",
            lse.cache,
        )
    for label, c in alone:
        part, _ = positive_pair_loss_bwd(
            c, pairs, lse.rows, label, mode, needs_z=True, needs_refs=False
        )
        assert part is not None
        dz = dz.to(dtype_of_results(pairs.z)).add_(part)
    return dz


def joins(label: Label, mode: Mode) -> bool:
    """Return whether the dense gradient on a CPU takes the label along.

    For weights of 1 class sums are cheaper still.
    """
    if mode == "hard" or label.window is not None:
        return False
    return not has_unit_weights(label.gamma, None)


def flat_windows(labels: Sequence[Label]) -> list[float]:
    """Return the windows, below 0 for equal labels."""
    return [-1.0 if label.window is None else float(label.window) for label in labels]
