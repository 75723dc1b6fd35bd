"""`pair_lse` and the `positive_pair_loss` of several labels, with one backward for all of them.

The gradient is the sum of the gradients of the two ops (their modules hold the mathematics):

    dlse_i = sum_k c^k_i weight_sum^k_i          c^k_i = dloss^k_i / |P_k(i)|
    dz_i   = sum_j h_ij z_j / tau
    h_ij   = p_ij dlse_i + p_ji dlse_j - sum_k [j in P_k(i)] (c^k_i w^k_ij + c^k_j w^k_ji)

An implementation may have `contrastive_rows_fwd` or `contrastive_rows_bwd` of its own; otherwise
they are composed of what the two ops have. `native` adds labels to h tile by tile, on a CPU those
with linear weights, so that they share its product with z and a coarse label, half of whose pairs
are positive, costs no more than a fine one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from spcl_fast.operands import Label, LabelGradient, Lse, Pairs, PositivePairLoss
from spcl_fast.ops._checks import check_labels, check_rows, positive_scalar
from spcl_fast.ops._contract import define_native
from spcl_fast.ops._function import OpFunction, first_order_only, save, saved, tau_gradient
from spcl_fast.ops._impl import Impl, fused, fuses, resolve_for, rows_for
from spcl_fast.ops.pair_lse import pair_lse, pair_lse_bwd, pair_lse_fwd
from spcl_fast.ops.positive_pair_loss import (
    constant,
    positive_pair_loss,
    positive_pair_loss_bwd,
    positive_pair_loss_fwd,
)
from spcl_fast.pair_weights import Mode, check_mode
from spcl_fast.precision import dtype_of_results, no_autocast

T = TypeVar("T", bound=NamedTuple)


def contrastive_rows(
    z: Tensor,
    tau: float | Tensor,
    labels: Sequence[Label],
    *,
    mode: Mode,
    impl: Impl = "auto",
) -> tuple[Tensor, list[PositivePairLoss]]:
    """Compute the log-sum-exp of every row and the losses of its positives under every label.

    The same as `pair_lse(z, tau)` and one `positive_pair_loss` per label, but faster.

    Args:
        z: (N, D), floating.
        tau: temperature, finite and above 0, or a 0-dim floating tensor on the device of `z`.
        labels: each with (N,) values, without values of references.
        mode: "hard" or "linear", of all labels.
        impl: implementation of the ops.

    Returns:
        lse (N,) and a `PositivePairLoss` per label. lse and the losses are differentiable in `z`
        and a tensor `tau`.

    Raises:
        TypeError: a dtype does not fit; floating labels without a window.
        ValueError: a shape, a device, a range, `mode` or `impl` does not fit; a label has values of
            references.
    """
    check_rows("z", z)
    tau = positive_scalar("tau", tau, z, finite=True)
    check_mode(mode)
    for label in labels:
        check_no_references(label)
        check_labels("labels", label.values, z.shape[0], z, label.window)
    paced = tuple(with_pace(label, z) for label in labels)
    name = resolve_for(impl, z)
    z, _ = rows_for(name, z, None)  # once, so that the gradients of all parts add up in float32
    if name == "reference":
        lse = pair_lse(z, tau, impl=impl)
        options: dict[str, Any] = {"tau": tau, "mode": mode, "impl": impl}
        return lse, [
            positive_pair_loss(z, lse, x.values, gamma=x.gamma, window=x.window, **options)
            for x in paced
        ]
    # The Function cannot see it: it runs without gradients, and its inputs still require them.
    has_backward = torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in (z, tau)
    )
    lse, *rows = _ContrastiveRows.apply(z, tau, paced, mode, name, has_backward)
    return lse, _tuples(PositivePairLoss, rows[: 3 * len(paced)])


def with_pace(label: Label, z: Tensor) -> Label:
    """Return the label with its pace as the implementations take it; raise if that is wrong."""
    gamma = positive_scalar("gamma", label.gamma, z, finite=False)
    return Label(label.values, constant(gamma), label.window, label.ref_values)


def check_no_references(label: Label) -> None:
    """Raise if the label has values of references."""
    if label.ref_values is not None:
        raise ValueError(
            f"ref_values must be None without references, got {tuple(label.ref_values.shape)}"
        )


class _SavedLabel(NamedTuple):
    values: Tensor
    gamma: float | Tensor
    window: float | None
    weight_sum: Tensor
    num_pos: Tensor


def _tuples(kind: type[T], flat: Sequence[Any]) -> list[T]:
    """Return the tuples of one kind whose fields `flat` holds one after the other."""
    width = len(kind._fields)
    return [kind(*flat[k : k + width]) for k in range(0, len(flat), width)]


def _empty_native_fwd(z: Tensor, labels: Sequence[Tensor]) -> tuple[Any, ...]:
    N = z.shape[0]
    loss, weight_sum = ([z.new_empty(N, dtype=torch.float32) for _ in labels] for _ in range(2))
    num_pos = [z.new_empty(N, dtype=torch.int64) for _ in labels]
    order = z.new_empty(len(labels) * 3 * (-(-N // 4) * 4), dtype=torch.int32)
    return z.new_empty(N, dtype=torch.float32), loss, weight_sum, num_pos, order


# On a GPU alone. A window below 0 means equal labels.
define_native(
    "contrastive_rows_fwd_native(Tensor z, Tensor tau, Tensor[] labels, Tensor[] gamma,"
    " float[] windows, bool is_hard) -> (Tensor lse, Tensor[] loss, Tensor[] weight_sum,"
    " Tensor[] num_pos, Tensor order)",
    _empty_native_fwd,
)
define_native(
    "contrastive_rows_bwd_native(Tensor z, Tensor lse, Tensor dlse, Tensor tau, Tensor[] labels,"
    " Tensor[] c, Tensor[] gamma, float[] windows, bool is_hard, Tensor order) -> Tensor dz",
    lambda z: z.new_empty(z.shape),
)


class _ContrastiveRows(OpFunction):
    @staticmethod
    def forward(
        z: Tensor,
        tau: float | Tensor,
        labels: tuple[Label, ...],
        mode: Mode,
        name: str,
        has_backward: bool,
    ) -> tuple[Tensor, ...]:
        pairs = Pairs(z, None, tau)
        with no_autocast(z.device):
            lse, rows = _forward(name, pairs, labels, mode, has_backward=has_backward)
        outputs = [lse.rows, *(x for row in rows for x in row)]
        # no None: torch.compile would give what follows it the gradient of another output
        return tuple(outputs if lse.cache is None else [*outputs, lse.cache])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        z, tau, labels, mode, name, _ = inputs
        ctx.num_labels = len(labels)
        lse, *others = output
        rows = _tuples(PositivePairLoss, others[: 3 * len(labels)])
        cache = others[3 * len(labels) :]
        ctx.set_materialize_grads(False)
        of_rows = (x for row in rows for x in (row.weight_sum, row.num_pos))
        ctx.mark_non_differentiable(*of_rows, *cache)
        values = [
            x
            for label, row in zip(labels, rows, strict=True)
            for x in (label.values, label.gamma, label.window, row.weight_sum, row.num_pos)
        ]
        save(ctx, z, tau, mode, name, lse, cache[0] if cache else None, *values)

    @staticmethod
    @first_order_only
    def backward(
        ctx: Any, dlse: Tensor | None, *dothers: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        z, tau, mode, name, rows_lse, cache, *values = saved(ctx)
        pairs, lse = Pairs(z, None, tau), Lse(rows_lse, None, cache)
        drows = _tuples(PositivePairLoss, dothers[: 3 * ctx.num_labels])
        needs_z, needs_tau = ctx.needs_input_grad[:2]
        gradients: list[LabelGradient] = []
        for label, drow in zip(_tuples(_SavedLabel, values), drows, strict=True):
            if drow.loss is not None:
                c = drow.loss / label.num_pos.clamp_min(1)
                added = c * label.weight_sum
                dlse = added if dlse is None else dlse + added
                gradients.append(LabelGradient(Label(label.values, label.gamma, label.window), c))
        dlse = torch.zeros_like(lse.rows) if dlse is None else dlse
        with no_autocast(z.device):
            dz = _backward(name, pairs, lse, dlse, gradients, mode)
        dtau = tau_gradient(pairs, dz) if needs_tau else None
        return dz.to(z.dtype) if needs_z else None, dtau, None, None, None, None


def _forward(
    name: str, pairs: Pairs, labels: Sequence[Label], mode: Mode, *, has_backward: bool
) -> tuple[Lse, list[PositivePairLoss]]:
    """Return the log-sum-exps, and the losses of every label."""
    if fuses(name, "contrastive_rows", pairs.z.device):
        forward = fused(name, "contrastive_rows_fwd")
        return forward(pairs, labels, mode, has_backward=has_backward)  # type: ignore[no-any-return]
    lse = pair_lse_fwd(name, pairs, has_backward=has_backward)
    return lse, [positive_pair_loss_fwd(name, pairs, lse.rows, x, mode) for x in labels]


def _backward(
    name: str,
    pairs: Pairs,
    lse: Lse,
    dlse: Tensor,  # (N,), with what the labels add to it
    gradients: Sequence[LabelGradient],
    mode: Mode,
) -> Tensor:
    """Return dz, in at least float32 if several gradients are added."""
    if fuses(name, "contrastive_rows", pairs.z.device):
        backward = fused(name, "contrastive_rows_bwd")
        return backward(pairs, lse, dlse, gradients, mode)  # type: ignore[no-any-return]
    needs: Any = {"needs_z": True, "needs_refs": False}
    dz, _ = pair_lse_bwd(name, pairs, lse, dlse, None, **needs)
    assert dz is not None
    dz = dz.to(dtype_of_results(pairs.z))
    for label, c in gradients:
        part, _ = positive_pair_loss_bwd(name, c, pairs, lse.rows, label, mode, **needs)
        assert part is not None
        dz = dz + part
    return dz
