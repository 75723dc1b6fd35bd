"""`pair_lse` in C++ (csrc/cpu/pair_lse.cpp) and CUDA (csrc/cuda/pair_lse.cuh).

The mathematics is in spcl_fast/ops/pair_lse.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spcl_fast.native._scalar import as_tensor
from spcl_fast.native.tile_cache import num_kept

torch.library.define(
    "spcl_fast::pair_lse_fwd_native",
    "(Tensor z, Tensor? refs, Tensor tau, SymInt num_kept) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "spcl_fast::pair_lse_bwd_native",
    "(Tensor z, Tensor? refs, Tensor lse, Tensor? lse_refs, Tensor dlse, Tensor? dlse_refs, "
    "Tensor tau, Tensor kept, Tensor[] labels, Tensor[] c, Tensor[] gamma, bool needs_z, "
    "bool needs_refs) -> (Tensor, Tensor)",
)


def _fake_pair_lse_fwd(
    z: Tensor, refs: Tensor | None, tau: Tensor, num_kept: int
) -> tuple[Tensor, Tensor, Tensor]:
    num_refs = 0 if refs is None else refs.shape[0]
    lse = z.new_empty(z.shape[0], dtype=torch.float32)
    return lse, lse.new_empty(num_refs), lse.new_empty(num_kept)


def _fake_pair_lse_bwd(
    z: Tensor,
    refs: Tensor | None,
    lse: Tensor,
    lse_refs: Tensor | None,
    dlse: Tensor,
    dlse_refs: Tensor | None,
    tau: Tensor,
    kept: Tensor,
    labels: list[Tensor],
    c: list[Tensor],
    gamma: list[Tensor],
    needs_z: bool,
    needs_refs: bool,
) -> tuple[Tensor, Tensor]:
    num_refs = refs.shape[0] if refs is not None and needs_refs else 0
    D = z.shape[1]
    return z.new_empty(z.shape[0] if needs_z else 0, D), z.new_empty(num_refs, D)


torch.library.register_fake("spcl_fast::pair_lse_fwd_native", _fake_pair_lse_fwd)
torch.library.register_fake("spcl_fast::pair_lse_bwd_native", _fake_pair_lse_bwd)


def pair_lse_fwd(
    z: Tensor,  # (N, D) float32, half types on a GPU too
    refs: Tensor | None,  # (M, D)
    tau: float | Tensor,
    *,
    keep: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return lse (N,), lse of the references (M,) if any, and what `pair_lse_bwd` takes as kept."""
    num_refs = None if refs is None else refs.shape[0]
    # On a GPU the products are as fast as the memory that tiles would lie in.
    size = num_kept(z.shape[0], num_refs) if keep and z.device.type == "cpu" else 0
    lse, lse_refs, kept = torch.ops.spcl_fast.pair_lse_fwd_native(z, refs, as_tensor(tau), size)
    return lse, None if refs is None else lse_refs, kept


def pair_lse_bwd(
    z: Tensor,  # (N, D)
    refs: Tensor | None,  # (M, D)
    lse: Tensor,  # (N,)
    lse_refs: Tensor | None,  # (M,)
    dlse: Tensor,  # (N,)
    dlse_refs: Tensor | None,  # (M,)
    tau: float | Tensor,
    kept: Tensor,
    labels: Sequence[Tensor] = (),
    c: Sequence[Tensor] = (),
    gamma: Sequence[float | Tensor] = (),
    *,
    needs_z: bool,
    needs_refs: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return dz (N, D) and drefs (M, D), None where not needed.

    Without `refs`, dz takes along what `positive_pair_loss_bwd` returns for labels (N,), c (N,) and
    gamma, one of each a label, with linear weights and no window.
    """
    dz, drefs = torch.ops.spcl_fast.pair_lse_bwd_native(
        z,
        refs,
        lse,
        lse_refs,
        dlse,
        dlse_refs,
        as_tensor(tau),
        kept,
        labels,
        c,
        [as_tensor(x) for x in gamma],
        needs_z,
        needs_refs,
    )
    return dz if needs_z else None, drefs if needs_refs and refs is not None else None
