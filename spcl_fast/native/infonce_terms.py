"""`infonce_terms` in C++ (csrc/cpu/infonce_terms.cpp), on a CPU.

The mathematics and the schemas are in spcl_fast/ops/infonce_terms.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spcl_fast.native._extension import call
from spcl_fast.native.tile_cache import cache_size
from spcl_fast.operands import Gradients, InfoNCETerms, Kept, Pairs


def infonce_terms_fwd(
    pairs: Pairs, *, symmetric: bool, has_backward: bool
) -> tuple[InfoNCETerms, Kept]:
    """Return the terms, and what the backward needs."""
    z, refs, tau = pairs
    assert refs is not None
    loss, lse, info, num_anchors, *kept = call(
        torch.ops.spcl_fast.infonce_terms_fwd_native,
        z.float(),
        refs.float(),
        float(tau),
        symmetric,
        cache_size(z.shape[0], refs.shape[0]) if has_backward else 0,
    )
    objective, mean_weight, collapse = info.unbind()
    terms = InfoNCETerms(loss, objective, mean_weight, num_anchors, collapse, lse)
    return terms, Kept(tuple(kept))


def infonce_terms_bwd(
    pairs: Pairs,
    lse: Tensor,  # (N,) float32
    kept: Kept,
    dloss: Tensor,
    *,
    symmetric: bool,
    needs_z: bool,
    needs_refs: bool,
) -> Gradients:
    """Return dz (N, D) and drefs (M, D) float32, None where not needed."""
    z, refs, tau = pairs
    assert refs is not None
    dz, drefs = call(
        torch.ops.spcl_fast.infonce_terms_bwd_native,
        *(z.float(), refs.float(), float(tau), symmetric),
        *(lse, dloss, *kept.tensors()),
        *(needs_z, needs_refs),
    )
    return Gradients(dz if needs_z else None, drefs if needs_refs else None)
