"""`pair_lse` in C++ (csrc/cpu/pair_lse.cpp) and CUDA (csrc/cuda/pair_lse.cuh).

The mathematics and the schemas are in spcl_fast/ops/pair_lse.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spcl_fast.native._extension import call
from spcl_fast.native._scalar import as_tensor
from spcl_fast.native.tile_cache import cache_size
from spcl_fast.operands import Gradients, LabelGradient, Lse, Pairs


def pair_lse_fwd(pairs: Pairs, *, has_backward: bool) -> Lse:
    """Return lse (N,), lse of the references (M,) if any, and the cache of tiles."""
    z, refs, tau = pairs
    size = 0
    # On a GPU the products are as fast as the memory in which tiles would lie.
    if has_backward and z.device.type == "cpu":
        size = cache_size(z.shape[0], None if refs is None else refs.shape[0])
    op = torch.ops.spcl_fast.pair_lse_fwd_native
    lse, lse_refs, cache = call(op, z, refs, as_tensor(tau), size)
    return Lse(lse, None if refs is None else lse_refs, cache)


def pair_lse_bwd(
    pairs: Pairs,
    lse: Lse,
    dlse: Tensor,  # (N,)
    dlse_refs: Tensor | None,  # (M,)
    joined: Sequence[LabelGradient] = (),
    *,
    needs_z: bool,
    needs_refs: bool,
) -> Gradients:
    """Return dz (N, D) and drefs (M, D), None where not needed.

    On a CPU and without references, dz takes along what `positive_pair_loss_bwd` returns for the
    labels that have `joined`, with linear weights and no window.
    """
    z, refs, tau = pairs
    dz, drefs = call(
        torch.ops.spcl_fast.pair_lse_bwd_native,
        z,
        refs,
        lse.rows,
        lse.refs,
        dlse,
        dlse_refs,
        as_tensor(tau),
        lse.cache,
        [label.values for label, _ in joined],
        [c for _, c in joined],
        [as_tensor(label.gamma) for label, _ in joined],
        needs_z,
        needs_refs,
    )
    return Gradients(dz if needs_z else None, drefs if needs_refs and refs is not None else None)
