"""`contrastive_terms` in C++ (csrc/cpu/contrastive_terms.cpp), on a CPU and without a bank.

The mathematics and the schemas are in spcl_fast/ops/contrastive_terms.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spcl_fast.native._extension import call
from spcl_fast.native.contrastive_rows import flat_windows, joins
from spcl_fast.native.tile_cache import cache_size
from spcl_fast.operands import ContrastiveTerms, Kept, Label, Pairs
from spcl_fast.pair_weights import Mode


def contrastive_terms_fwd(
    pairs: Pairs,
    labels: Sequence[Label],
    factors: Sequence[float],
    mode: Mode,
    *,
    correct_grad: bool,
    has_backward: bool,
) -> tuple[ContrastiveTerms, Kept]:
    """Return the terms, and what the backward needs."""
    z = pairs.z.float()
    loss, losses, lse, info, num_anchors, *kept = call(
        torch.ops.spcl_fast.contrastive_terms_fwd_native,
        z,
        float(pairs.tau),
        [label.values for label in labels],
        [float(label.gamma) for label in labels],
        flat_windows(labels),
        list(factors),
        mode == "hard",
        correct_grad,
        cache_size(z.shape[0], None) if has_backward else 0,
    )
    return ContrastiveTerms.of(loss, losses, lse, info, num_anchors), Kept(tuple(kept))


def contrastive_terms_bwd(
    pairs: Pairs,
    labels: Sequence[Label],
    lse: Tensor,  # (N,) float32
    kept: Kept,
    dloss: Tensor | None,  # () float32
    dlosses: Tensor | None,  # (K,) float32
    mode: Mode,
) -> Tensor:
    """Return dz (N, D) float32: what follows of half-precision rows is exact to float32 too."""
    dz: Tensor = call(
        torch.ops.spcl_fast.contrastive_terms_bwd_native,
        pairs.z.float(),
        lse,
        float(pairs.tau),
        [label.values for label in labels],
        [float(label.gamma) for label in labels],
        flat_windows(labels),
        mode == "hard",
        [k for k, label in enumerate(labels) if joins(label, mode)],
        dloss,
        dlosses,
        *kept.tensors(),
    )
    return dz
