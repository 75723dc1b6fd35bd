"""`positive_pair_loss` in C++ (csrc/cpu/positive_pair_loss.cpp) and CUDA (csrc/cuda).

The mathematics and the schemas are in spcl_fast/ops/positive_pair_loss.py. With gamma = inf and no
window class sums replace the pairs on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spcl_fast.native._extension import call
from spcl_fast.native._scalar import as_tensor
from spcl_fast.operands import Gradients, Label, Pairs, PositivePairLoss
from spcl_fast.pair_weights import Mode


def positive_pair_loss_fwd(
    pairs: Pairs,
    lse: Tensor,  # (N,)
    label: Label,
    mode: Mode,
) -> PositivePairLoss:
    """Return loss, weight_sum and num_pos, (N,) each."""
    arguments = _flat(pairs, lse, label, mode)
    op = torch.ops.spcl_fast.positive_pair_loss_fwd_native
    return PositivePairLoss(*call(op, *arguments))


def positive_pair_loss_bwd(
    c: Tensor,  # (N,) dloss_i / |P(i)|
    pairs: Pairs,
    lse: Tensor,  # (N,)
    label: Label,
    mode: Mode,
    *,
    needs_z: bool,
    needs_refs: bool,
) -> Gradients:
    """Return dz (N, D) and drefs (M, D) with lse held fixed, None where not needed."""
    needs: Any = {"needs_z": needs_z, "needs_refs": needs_refs}
    arguments = _flat(pairs, lse, label, mode)
    op = torch.ops.spcl_fast.positive_pair_loss_bwd_native
    dz, drefs = call(op, c, *arguments, *needs.values())
    has_refs = pairs.refs is not None
    return Gradients(dz if needs_z else None, drefs if needs_refs and has_refs else None)


def _flat(pairs: Pairs, lse: Tensor, label: Label, mode: Mode) -> tuple[Any, ...]:
    """Return the arguments of the ops in their order."""
    tau, gamma = as_tensor(pairs.tau), as_tensor(label.gamma)
    rows = (pairs.z, lse, label.values, pairs.refs, label.ref_values)
    return (*rows, tau, gamma, mode == "hard", label.window)
