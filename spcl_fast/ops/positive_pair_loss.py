"""Self-paced mean of the losses of positive pairs, the half of every loss that needs labels.

    l_ij         = lse_i - z_i . z_j / tau
    loss_i       = 1 / |P(i)| sum_{j in P(i)} w_ij l_ij         P(i) = { j != i : y_j = y_i }
    weight_sum_i = sum_{j in P(i)} w_ij                         w_ij: spcl_fast/pair_weights.py

    c_i    = dloss_i / |P(i)|
    dlse_i = c_i weight_sum_i
    dz_i   = -sum_j (c_i w_ij + c_j w_ji) z_j / tau
    dtau   = -<z, dz> / (2 tau)

w is a constant for the gradient, which by the envelope theorem is the gradient of min_w of the
objective w l + R(w). Rectangular, with references r: dz_i = -sum_j c_i w_ij r_j / tau,
dr_j = -sum_i c_i w_ij z_i / tau, dtau = -<z, dz> / tau.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spcl_fast import reference
from spcl_fast.operands import Gradients, Label, Pairs, PositivePairLoss
from spcl_fast.ops._checks import check_pairs, positive_scalar
from spcl_fast.ops._contract import define_native, implemented
from spcl_fast.ops._function import OpFunction, first_order_only, save, saved, tau_gradient
from spcl_fast.ops._impl import Impl, resolve_for, rows_for
from spcl_fast.ops.pair_lse import empty_gradients, empty_native_gradients
from spcl_fast.pair_weights import MIN_GAMMA, Mode, check_mode
from spcl_fast.precision import dtype_of_results, no_autocast


def positive_pair_loss(
    z: Tensor,
    lse: Tensor,
    labels: Tensor,
    *,
    tau: float | Tensor,
    gamma: float | Tensor,
    mode: Mode,
    window: float | None = None,
    refs: Tensor | None = None,
    ref_labels: Tensor | None = None,
    impl: Impl = "auto",
) -> PositivePairLoss:
    """Compute the weighted mean of lse_i - z_i . z_j / tau over the positives of every row.

    Half precision is computed in float32, regardless of autocast; triton, and native on a GPU,
    multiply rows in half precision and compute everything after that in float32.
    Only impl="reference" can be differentiated twice.

    Args:
        z: (N, D), floating.
        lse: (N,), float32 or float64, from `pair_lse`.
        labels: (N,). Rows of equal integers are positives of each other. A row whose label is below
            0, unknown, has no positives and is a positive of no row.
        tau: temperature, finite and above 0, or a 0-dim floating tensor on the device of `z`.
        gamma: pace, above 0, inf for weights of 1, or a 0-dim floating tensor on the device of `z`.
            A tensor is not read: if it is not above 0, the loss is NaN.
        mode: "hard" or "linear".
        window: positive means `|y_i - y_j| <= window`, in float64, for labels of any real dtype;
            below 0 and NaN are unknown.
        refs: (M, D), dtype and device of `z`: references, which hold the positives instead of the
            other rows of `z`.
        ref_labels: (M,), with `refs`.
        impl: "auto", "reference", "chunked", "native" or "triton".

    Returns:
        loss, weight_sum and num_pos. The loss is differentiable in `z`, `lse`, `refs` and a tensor
        `tau`, not in `gamma`.

    Raises:
        TypeError: a dtype does not fit; floating labels without a window.
        ValueError: a shape, a device, a range, `mode` or `impl` does not fit.
    """
    check_pairs(z, lse, labels, window=window, refs=refs, ref_labels=ref_labels)
    tau = positive_scalar("tau", tau, z, finite=True)
    gamma = constant(positive_scalar("gamma", gamma, z, finite=False))
    check_mode(mode)
    name = resolve_for(impl, z)
    z, refs = rows_for(name, z, refs)
    label = Label(labels, gamma, window, ref_labels)
    lse = lse.to(dtype_of_results(z))
    if name == "reference":
        with no_autocast(z.device):
            return reference.positive_pair_loss(Pairs(z, refs, tau), lse, label, mode)
    return PositivePairLoss(*_PositivePairLoss.apply(z, refs, tau, lse, label, mode, name))


def constant(gamma: float | Tensor) -> float | Tensor:
    """Return the pace, detached, and not so small that float32 cannot divide by it."""
    if isinstance(gamma, float):
        return max(gamma, MIN_GAMMA)
    return gamma.detach().clamp_min(MIN_GAMMA)


@implemented
def positive_pair_loss_fwd(pairs: Pairs, lse: Tensor, label: Label, mode: Mode) -> PositivePairLoss:
    """Return loss, weight_sum and num_pos."""
    loss = pairs.z.new_empty(pairs.z.shape[0], dtype=dtype_of_results(pairs.z))
    return PositivePairLoss(loss, torch.empty_like(loss), torch.empty_like(loss, dtype=torch.int64))


@implemented
def positive_pair_loss_bwd(
    c: Tensor,
    pairs: Pairs,
    lse: Tensor,
    label: Label,
    mode: Mode,
    *,
    needs_z: bool,
    needs_refs: bool,
) -> Gradients:
    """Return dz and drefs with lse held fixed, for c_i = dloss_i / |P(i)|."""
    return empty_gradients(pairs, needs_z=needs_z, needs_refs=needs_refs)


def _empty_native(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    loss = z.new_empty(z.shape[0], dtype=torch.float32)
    return loss, torch.empty_like(loss), torch.empty_like(loss, dtype=torch.int64)


define_native(
    "positive_pair_loss_fwd_native(Tensor z, Tensor lse, Tensor labels, Tensor? refs,"
    " Tensor? ref_labels, Tensor tau, Tensor gamma, bool is_hard, float? window)"
    " -> (Tensor loss, Tensor weight_sum, Tensor num_pos)",
    _empty_native,
)
define_native(
    "positive_pair_loss_bwd_native(Tensor c, Tensor z, Tensor lse, Tensor labels, Tensor? refs,"
    " Tensor? ref_labels, Tensor tau, Tensor gamma, bool is_hard, float? window, bool needs_z,"
    " bool needs_refs) -> (Tensor dz, Tensor drefs)",
    empty_native_gradients,
)


class _PositivePairLoss(OpFunction):
    @staticmethod
    def forward(
        z: Tensor,
        refs: Tensor | None,
        tau: float | Tensor,
        lse: Tensor,
        label: Label,
        mode: Mode,
        name: str,
    ) -> tuple[Tensor, ...]:
        with no_autocast(z.device):
            return tuple(positive_pair_loss_fwd(name, Pairs(z, refs, tau), lse, label, mode))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        z, refs, tau, lse, label, mode, name = inputs
        _, weight_sum, num_pos = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(weight_sum, num_pos)
        save(ctx, z, refs, tau, lse, mode, name, weight_sum, num_pos, *label)

    @staticmethod
    @first_order_only
    def backward(
        ctx: Any, dloss: Tensor | None, _dweight_sum: None, _dnum_pos: None
    ) -> tuple[Tensor | None, ...]:
        if dloss is None:
            return (None,) * 7
        z, refs, tau, lse, mode, name, weight_sum, num_pos, *label = saved(ctx)
        pairs = Pairs(z, refs, tau)
        needs_z, needs_refs, needs_tau, needs_lse, *_ = ctx.needs_input_grad
        c = dloss / num_pos.clamp_min(1)
        dz = drefs = dtau = None
        if needs_z or needs_refs or needs_tau:
            with no_autocast(z.device):
                dz, drefs = positive_pair_loss_bwd(
                    name,
                    c,
                    pairs,
                    lse,
                    Label(*label),
                    mode,
                    needs_z=needs_z or needs_tau,
                    needs_refs=needs_refs,
                )
        if needs_tau and dz is not None:
            dtau = tau_gradient(pairs, dz)
        dz, drefs = dz if needs_z else None, drefs if needs_refs else None
        dlse = c * weight_sum if needs_lse else None
        return dz, drefs, dtau, dlse, None, None, None
