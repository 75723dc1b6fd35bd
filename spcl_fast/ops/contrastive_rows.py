"""`pair_lse` and the `positive_pair_loss` of several labels, with one backward for all of them.

The gradient is the sum of the gradients of the two ops (their modules hold the mathematics):

    dlse_i = sum_k c^k_i weight_sum^k_i          c^k_i = dloss^k_i / |P_k(i)|
    dz_i   = sum_j h_ij z_j / tau
    h_ij   = p_ij dlse_i + p_ji dlse_j - sum_k [j in P_k(i)] (c^k_i w^k_ij + c^k_j w^k_ji)

`native` adds the labels with linear weights to h tile by tile, so that they share its product with
z and a coarse label, half of whose pairs are positive, costs no more than a fine one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spcl_fast import native
from spcl_fast.ops._checks import check_labels, check_rows, check_scalar
from spcl_fast.ops._first_order import OpFunction, first_order_only
from spcl_fast.ops._impl import Impl, resolve_for, rows_for
from spcl_fast.ops._library import (
    pair_lse_bwd,
    pair_lse_fwd,
    positive_pair_loss_bwd,
    positive_pair_loss_fwd,
)
from spcl_fast.ops.pair_lse import pair_lse
from spcl_fast.ops.positive_pair_loss import PositivePairLoss, positive_pair_loss
from spcl_fast.pair_weights import Mode, check_mode
from spcl_fast.precision import accumulator_dtype, dtype_of_results, no_autocast


def contrastive_rows(
    z: Tensor,
    tau: float | Tensor,
    labels: Sequence[Tensor],
    *,
    gammas: Sequence[float | Tensor],
    windows: Sequence[float | None],
    mode: Mode,
    impl: Impl = "auto",
) -> tuple[Tensor, list[PositivePairLoss]]:
    """Compute the log-sum-exp of every row and the losses of its positives under every label.

    The same as `pair_lse(z, tau)` and one `positive_pair_loss` a label, and faster.

    Args:
        z: (N, D), floating.
        tau: temperature, finite and above 0, or a 0-dim floating tensor on the device of `z`.
        labels: (N,) each, as for `positive_pair_loss`.
        gammas: pace of each label, above 0, inf for weights of 1, or 0-dim floating tensors.
        windows: window of each label, None where equal labels are positive.
        mode: "hard" or "linear", of all labels.
        impl: implementation of the ops.

    Returns:
        lse (N,) and a `PositivePairLoss` a label. lse and the losses are differentiable in `z` and
        a tensor `tau`.

    Raises:
        TypeError: a dtype does not fit; floating labels without a window.
        ValueError: a shape, a device, a range, `mode` or `impl` does not fit; the numbers of
            labels, gammas and windows differ.
    """
    if not len(labels) == len(gammas) == len(windows):
        raise ValueError(
            "labels, gammas and windows must be as many, got "
            f"{len(labels)}, {len(gammas)} and {len(windows)}"
        )
    name = resolve_for(impl, z)
    if name == "reference":
        lse = pair_lse(z, tau, impl=impl)
        options: dict[str, Any] = {"tau": tau, "mode": mode, "impl": impl}
        return lse, [
            positive_pair_loss(z, lse, label, gamma=gamma, window=window, **options)
            for label, gamma, window in zip(labels, gammas, windows, strict=True)
        ]
    check_rows("z", z)
    check_scalar("tau", tau, z, finite=True)
    check_mode(mode)
    z, _ = rows_for(name, z, None)
    for label, gamma, window in zip(labels, gammas, windows, strict=True):
        check_labels("labels", label, z.shape[0], z, window)
        check_scalar("gamma", gamma, z, finite=False)
    paces = [x.detach() if isinstance(x, Tensor) else float(x) for x in gammas]
    # The Function cannot see it: it runs without gradients, and its inputs require them regardless.
    has_backward = torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in (z, tau)
    )
    choice = (name, mode, tuple(windows), has_backward)
    lse, *rows = _ContrastiveRows.apply(z, tau, tuple(labels), tuple(paces), choice)
    return lse, [PositivePairLoss(*rows[k : k + 3]) for k in range(0, 3 * len(paces), 3)]


class _ContrastiveRows(OpFunction):
    @staticmethod
    def forward(
        z: Tensor,
        tau: float | Tensor,
        labels: tuple[Tensor, ...],
        gammas: tuple[float | Tensor, ...],
        choice: tuple[str, Mode, tuple[float | None, ...], bool],
    ) -> tuple[Tensor, ...]:
        name, mode, windows, has_backward = choice
        outputs: list[Tensor] = []
        with no_autocast(z.device):
            lse, _, kept = pair_lse_fwd(name, z, None, tau, has_backward=has_backward)
            for label, gamma, window in zip(labels, gammas, windows, strict=True):
                operands = (z, lse, label, None, None)
                outputs += positive_pair_loss_fwd(name, operands, tau, gamma, mode, window)
        # no None: torch.compile would give what follows it the gradient of another output
        return lse, *outputs, *([] if kept is None else [kept])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        z, tau, labels, gammas, ctx.choice = inputs
        K = len(labels)
        lse, *outputs = output
        sums, kept = [*outputs[1 : 3 * K : 3], *outputs[2 : 3 * K : 3]], outputs[3 * K :]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*sums, *kept)
        # A number or tensor is saved as a number and an optional tensor.
        ctx.numbers = [None if isinstance(x, Tensor) else x for x in (tau, *gammas)]
        tensors = [x if isinstance(x, Tensor) else None for x in (tau, *gammas)]
        ctx.save_for_backward(z, lse, *labels, *tensors, *sums, *kept)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, dlse: Tensor | None, *dpositives: Tensor | None) -> tuple[Any, ...]:
        name, mode, windows, _ = ctx.choice
        K = len(windows)
        z, lse, *saved = ctx.saved_tensors
        labels, tensors, sums = saved[:K], saved[K : 2 * K + 1], saved[2 * K + 1 : 4 * K + 1]
        kept: Any = saved[4 * K + 1] if len(saved) > 4 * K + 1 else None
        joined = zip(ctx.numbers, tensors, strict=True)
        tau, *gammas = (tensor if number is None else number for number, tensor in joined)
        needs_z, needs_tau = ctx.needs_input_grad[:2]
        dlse = torch.zeros_like(lse) if dlse is None else dlse
        gradients: list[native.LabelGradient] = []
        for k, dloss in enumerate(dpositives[: 3 * K : 3]):
            if dloss is not None:
                weight_sum, num_pos = sums[k], sums[K + k]
                c = dloss / num_pos.clamp_min(1)
                dlse = dlse + c * weight_sum
                gradients.append(native.LabelGradient(labels[k], c, gammas[k], windows[k]))
        with no_autocast(z.device):
            if name == "native":
                dz = native.contrastive_rows_bwd(z, lse, dlse, gradients, tau, mode, kept)
            else:
                dz = _sum_of_gradients(name, z, lse, dlse, gradients, tau, mode)
        dtau = None
        if needs_tau:
            product = z.to(dtype_of_results(z)) * dz
            dtau = -product.sum(dtype=accumulator_dtype(z.device)) / tau / 2
            dtau = dtau.to(tau.dtype)
        return dz.to(z.dtype) if needs_z else None, dtau, None, None, None


def _sum_of_gradients(
    name: str,
    z: Tensor,
    lse: Tensor,
    dlse: Tensor,
    gradients: Sequence[native.LabelGradient],
    tau: float | Tensor,
    mode: Mode,
) -> Tensor:
    """Return dz, float32 at least, from the backwards of the two ops by `name`."""
    needs: Any = {"needs_z": True, "needs_refs": False}
    dz, _ = pair_lse_bwd(name, z, None, lse, None, dlse, None, tau, None, **needs)
    assert dz is not None
    dz = dz.to(dtype_of_results(z))
    for x in gradients:
        operands = (z, lse, x.labels, None, None)
        part, _ = positive_pair_loss_bwd(name, x.c, operands, tau, x.gamma, mode, x.window, **needs)
        assert part is not None
        dz = dz + part
    return dz
