"""Self-paced mean of the losses of positive pairs, the half of every loss that knows the labels.

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

from typing import Any, NamedTuple

from torch import Tensor

from spcl_fast import reference
from spcl_fast.ops._checks import check_pairs, check_scalar
from spcl_fast.ops._first_order import OpFunction, first_order_only
from spcl_fast.ops._impl import Impl, resolve_for, rows_for
from spcl_fast.ops._library import positive_pair_loss_bwd, positive_pair_loss_fwd
from spcl_fast.pair_weights import Mode, check_mode
from spcl_fast.precision import accumulator_dtype, dtype_of_results, no_autocast


class PositivePairLoss(NamedTuple):
    """What `positive_pair_loss` returns, one value a row."""

    loss: Tensor
    """(N,) float32 or float64, differentiable; 0 in a row without positives."""
    weight_sum: Tensor
    """(N,) as `loss`, not differentiable: the sum of the weights of the row's positives."""
    num_pos: Tensor
    """(N,) int64: the number of positives."""


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

    Half types are computed in float32, under `torch.autocast` too; triton, and native on a
    GPU, multiply them as they are, and have float32 from there on. impl="reference"
    alone can be differentiated twice.

    Args:
        z: (N, D), floating.
        lse: (N,), float32 or float64, from `pair_lse`.
        labels: (N,). Equal integers are positive; below 0 is unknown: the row has no positives and
            is one of nobody.
        tau: temperature, finite and above 0, or a 0-dim floating tensor on the device of `z`.
        gamma: pace, above 0, inf for weights of 1, or a 0-dim floating tensor on the device of `z`.
        mode: "hard" or "linear".
        window: positive means |y_i - y_j| <= window, in float64, for labels of any real dtype;
            below 0 and NaN are unknown.
        refs: (M, D), dtype and device of `z`: positives are looked for here, none excluded.
        ref_labels: (M,), with `refs`.
        impl: "auto", "reference", "chunked", "native" or "triton".

    Returns:
        loss, weight_sum and num_pos. The loss is differentiable in `z`, `lse`, `refs` and a tensor
        `tau`, not in `gamma`.

    Raises:
        TypeError: a dtype does not fit; floating labels without a window.
        ValueError: a shape, a device, a range, `mode` or `impl` does not fit.
    """
    check_pairs(z, lse, labels, tau=tau, window=window, refs=refs, ref_labels=ref_labels)
    check_scalar("gamma", gamma, z, finite=False)
    check_mode(mode)
    name = resolve_for(impl, z)
    z, refs = rows_for(name, z, refs)
    gamma = gamma.detach() if isinstance(gamma, Tensor) else float(gamma)
    lse = lse.to(dtype_of_results(z))
    if name == "reference":
        with no_autocast(z.device):
            return PositivePairLoss(
                *reference.positive_pair_loss(
                    z,
                    lse,
                    labels,
                    tau=tau,
                    gamma=gamma,
                    mode=mode,
                    window=window,
                    refs=refs,
                    ref_labels=ref_labels,
                )
            )
    return PositivePairLoss(
        *_PositivePairLoss.apply(z, lse, labels, refs, ref_labels, tau, gamma, (name, mode, window))
    )


class _PositivePairLoss(OpFunction):
    @staticmethod
    def forward(
        z: Tensor,
        lse: Tensor,
        labels: Tensor,
        refs: Tensor | None,
        ref_labels: Tensor | None,
        tau: float | Tensor,
        gamma: float | Tensor,
        choice: tuple[str, Mode, float | None],
    ) -> tuple[Tensor, Tensor, Tensor]:
        name, mode, window = choice
        with no_autocast(z.device):
            return positive_pair_loss_fwd(
                name, (z, lse, labels, refs, ref_labels), tau, gamma, mode, window
            )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *operands, tau, gamma, ctx.choice = inputs
        _, weight_sum, num_pos = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(weight_sum, num_pos)
        ctx.tau, tau_tensor = (None, tau) if isinstance(tau, Tensor) else (tau, None)
        ctx.gamma, gamma_tensor = (None, gamma) if isinstance(gamma, Tensor) else (gamma, None)
        ctx.save_for_backward(*operands, weight_sum, num_pos, tau_tensor, gamma_tensor)

    @staticmethod
    @first_order_only
    def backward(
        ctx: Any, dloss: Tensor | None, _dweight_sum: None, _dnum_pos: None
    ) -> tuple[Tensor | None, ...]:
        if dloss is None:
            return (None,) * 8
        z, lse, labels, refs, ref_labels, weight_sum, num_pos, tau, gamma = ctx.saved_tensors
        tau = ctx.tau if tau is None else tau
        gamma = ctx.gamma if gamma is None else gamma
        name, mode, window = ctx.choice
        needs_z, needs_lse, _, needs_refs, _, needs_tau, _, _ = ctx.needs_input_grad
        c = dloss / num_pos.clamp_min(1)
        dz = drefs = dtau = None
        if needs_z or needs_refs or needs_tau:
            with no_autocast(z.device):
                dz, drefs = positive_pair_loss_bwd(
                    name,
                    c,
                    (z, lse, labels, refs, ref_labels),
                    tau,
                    gamma,
                    mode,
                    window,
                    needs_z=needs_z or needs_tau,
                    needs_refs=needs_refs,
                )
        if needs_tau:
            dtau = -(z.to(dtype_of_results(z)) * dz).sum(dtype=accumulator_dtype(z.device)) / tau
            dtau = (dtau / 2 if refs is None else dtau).to(tau.dtype)
        dlse = c * weight_sum if needs_lse else None
        return dz if needs_z else None, dlse, None, drefs, None, dtau, None, None
