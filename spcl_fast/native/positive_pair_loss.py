"""`positive_pair_loss` in C++ (csrc/cpu/positive_pair_loss.cpp) and CUDA (csrc/cuda).

The mathematics is in spcl_fast/ops/positive_pair_loss.py. With gamma = inf and no window class sums
replace the pairs: those of csrc/cpu on a CPU, those of spcl_fast/class_sums.py elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spcl_fast.class_sums import Classes, class_sum_gradients, class_sum_loss
from spcl_fast.native._scalar import as_tensor
from spcl_fast.pair_weights import Mode, has_unit_weights

torch.library.define(
    "spcl_fast::positive_pair_loss_fwd_native",
    "(Tensor z, Tensor lse, Tensor labels, Tensor? refs, Tensor? ref_labels, Tensor tau, "
    "Tensor gamma, bool is_hard, float? window) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "spcl_fast::positive_pair_loss_bwd_native",
    "(Tensor c, Tensor z, Tensor lse, Tensor labels, Tensor? refs, Tensor? ref_labels, Tensor tau, "
    "Tensor gamma, bool is_hard, float? window, bool needs_z, bool needs_refs) "
    "-> (Tensor, Tensor)",
)


def _fake_positive_pair_loss_fwd(
    z: Tensor,
    lse: Tensor,
    labels: Tensor,
    refs: Tensor | None,
    ref_labels: Tensor | None,
    tau: Tensor,
    gamma: Tensor,
    is_hard: bool,
    window: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    loss = z.new_empty(z.shape[0], dtype=torch.float32)
    return loss, torch.empty_like(loss), torch.empty_like(loss, dtype=torch.int64)


def _fake_positive_pair_loss_bwd(
    c: Tensor,
    z: Tensor,
    lse: Tensor,
    labels: Tensor,
    refs: Tensor | None,
    ref_labels: Tensor | None,
    tau: Tensor,
    gamma: Tensor,
    is_hard: bool,
    window: float | None,
    needs_z: bool,
    needs_refs: bool,
) -> tuple[Tensor, Tensor]:
    num_refs = refs.shape[0] if refs is not None and needs_refs else 0
    D = z.shape[1]
    return z.new_empty(z.shape[0] if needs_z else 0, D), z.new_empty(num_refs, D)


torch.library.register_fake(
    "spcl_fast::positive_pair_loss_fwd_native", _fake_positive_pair_loss_fwd
)
torch.library.register_fake(
    "spcl_fast::positive_pair_loss_bwd_native", _fake_positive_pair_loss_bwd
)


def positive_pair_loss_fwd(
    z: Tensor,  # (N, D) float32, half types on a GPU too
    lse: Tensor,  # (N,)
    labels: Tensor,  # (N,)
    refs: Tensor | None,  # (M, D)
    ref_labels: Tensor | None,  # (M,)
    tau: float | Tensor,
    gamma: float | Tensor,
    mode: Mode,
    window: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, weight_sum and num_pos, (N,) each."""
    if has_unit_weights(gamma, window) and z.device.type != "cpu":
        return class_sum_loss(z, lse, refs, Classes(labels, ref_labels), tau)
    loss, weight_sum, num_pos = torch.ops.spcl_fast.positive_pair_loss_fwd_native(
        z,
        lse,
        labels,
        refs,
        ref_labels,
        as_tensor(tau),
        as_tensor(gamma),
        mode == "hard",
        window,
    )
    return loss, weight_sum, num_pos


def positive_pair_loss_bwd(
    c: Tensor,  # (N,) dloss_i / |P(i)|
    z: Tensor,  # (N, D)
    lse: Tensor,  # (N,)
    labels: Tensor,  # (N,)
    refs: Tensor | None,  # (M, D)
    ref_labels: Tensor | None,  # (M,)
    tau: float | Tensor,
    gamma: float | Tensor,
    mode: Mode,
    window: float | None,
    *,
    needs_z: bool,
    needs_refs: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return dz (N, D) and drefs (M, D) with lse held fixed, None where not needed."""
    if has_unit_weights(gamma, window) and z.device.type != "cpu":
        classes = Classes(labels, ref_labels)
        return class_sum_gradients(c, z, refs, classes, tau, needs_z=needs_z, needs_refs=needs_refs)
    dz, drefs = torch.ops.spcl_fast.positive_pair_loss_bwd_native(
        c,
        z,
        lse,
        labels,
        refs,
        ref_labels,
        as_tensor(tau),
        as_tensor(gamma),
        mode == "hard",
        window,
        needs_z,
        needs_refs,
    )
    return dz if needs_z else None, drefs if needs_refs and refs is not None else None
