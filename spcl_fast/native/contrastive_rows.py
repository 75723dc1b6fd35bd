"""The gradient of `contrastive_rows`: labels with linear weights join the dense gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from spcl_fast.native.pair_lse import pair_lse_bwd
from spcl_fast.native.positive_pair_loss import positive_pair_loss_bwd
from spcl_fast.pair_weights import Mode, has_unit_weights
from spcl_fast.precision import dtype_of_results


class LabelGradient(NamedTuple):
    """A label and what reaches the losses of its rows from above."""

    labels: Tensor  # (N,)
    c: Tensor  # (N,) dloss_i / |P(i)|
    gamma: float | Tensor
    window: float | None


def contrastive_rows_bwd(
    z: Tensor,  # (N, D)
    lse: Tensor,  # (N,)
    dlse: Tensor,  # (N,)
    gradients: Sequence[LabelGradient],
    tau: float | Tensor,
    mode: Mode,
    kept: Tensor,
) -> Tensor:
    """Return dz (N, D), float32 if several are added; dlse holds what the labels add to it."""
    joins = [_joins(x, mode) for x in gradients]
    linear = [x for x, is_linear in zip(gradients, joins, strict=True) if is_linear]
    dz, _ = pair_lse_bwd(
        z,
        None,
        lse,
        None,
        dlse,
        None,
        tau,
        kept,
        labels=[x.labels for x in linear],
        c=[x.c for x in linear],
        gamma=[x.gamma for x in linear],
        needs_z=True,
        needs_refs=False,
    )
    assert dz is not None
    for x, is_linear in zip(gradients, joins, strict=True):
        if not is_linear:
            part, _ = positive_pair_loss_bwd(
                x.c,
                z,
                lse,
                x.labels,
                None,
                None,
                tau,
                x.gamma,
                mode,
                x.window,
                needs_z=True,
                needs_refs=False,
            )
            assert part is not None
            dz = dz.to(dtype_of_results(z)).add_(part)
    return dz


def _joins(x: LabelGradient, mode: Mode) -> bool:
    """Return whether the dense gradient takes the label along; class sums are cheaper still."""
    return mode == "linear" and x.window is None and not has_unit_weights(x.gamma, x.window)
