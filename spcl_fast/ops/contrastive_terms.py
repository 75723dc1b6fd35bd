"""The scalars of a loss over several labels, from the rows to their means in one op.

    L = sum_k lambda_k L_k            L_k = mean over the anchors of loss^k_i

    dloss^k_i = (dL lambda_k + dL_k) / |anchors of k|, and over the mean weight if corrected

`losses` composes the same from `contrastive_rows`; an implementation that fuses
`contrastive_terms_fwd` and `_bwd` launches a dozen kernels for all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import unwrap_if_dead

from spcl_fast.alike import Alike
from spcl_fast.operands import ContrastiveTerms, Kept, Label, Pairs
from spcl_fast.ops._checks import check_labels, check_rows, positive_scalar
from spcl_fast.ops._contract import define_native
from spcl_fast.ops._function import (
    FusedFunction,
    first_order_only,
    in_dtype_of,
    is_transformed,
    needs_gradient,
    number_or_tensor,
    tau_gradient,
)
from spcl_fast.ops._impl import Impl, fused, fusing, takes_bank
from spcl_fast.ops.composed.bank_rows import check_bank
from spcl_fast.ops.contrastive_rows import check_no_references, with_pace
from spcl_fast.pair_weights import Mode, check_mode


def _empty_native_fwd(z: Tensor, labels: Sequence[Tensor]) -> tuple[Tensor, ...]:
    K, N = len(labels), z.shape[0]
    weight_sum = z.new_empty(K, N)
    return (
        *(z.new_empty(()), z.new_empty(K), z.new_empty(N), z.new_empty(K + 1, 3)),
        z.new_empty(K + 1, dtype=torch.int64),
        *(weight_sum, torch.empty_like(weight_sum, dtype=torch.int64)),
        *(z.new_empty(2, K, dtype=torch.float64), z.new_empty(0)),
    )


# On a CPU alone. A window below 0 means equal labels; slopes (2, K) are the derivatives of the
# loss, and of that of label k, in the loss of an anchor; `joined` are labels whose pairs join h.
define_native(
    "contrastive_terms_fwd_native(Tensor z, float tau, Tensor[] labels, float[] gamma,"
    " float[] windows, float[] factors, bool is_hard, bool corrects, SymInt cache_size)"
    " -> (Tensor loss, Tensor losses, Tensor lse, Tensor info, Tensor num_anchors,"
    " Tensor weight_sum, Tensor num_pos, Tensor slopes, Tensor cache)",
    _empty_native_fwd,
)
define_native(
    "contrastive_terms_bwd_native(Tensor z, Tensor lse, float tau, Tensor[] labels,"
    " float[] gamma, float[] windows, bool is_hard, int[] joined, Tensor? dloss, Tensor? dlosses,"
    " Tensor weight_sum, Tensor num_pos, Tensor slopes, Tensor cache) -> Tensor dz",
    lambda z: z.new_empty(z.shape),
)


_checked: Alike[bool] = Alike()


class _How(NamedTuple):
    name: str
    tau: float  # unless it is a tensor
    factors: tuple[float, ...]
    mode: Mode
    correct_grad: bool
    has_backward: bool


def contrastive_terms(
    z: Tensor,
    tau: float | Tensor,
    labels: Sequence[Label],
    factors: Sequence[float | Tensor],
    *,
    mode: Mode,
    correct_grad: bool = False,
    bank: Tensor | None = None,
    impl: Impl = "auto",
) -> ContrastiveTerms | None:
    """Compute the terms of a loss if an implementation has them in one op, otherwise return None.

    Args:
        z: (N, D), floating.
        tau: temperature, finite and above 0, or a 0-dim floating tensor on the device of `z`.
        labels: each with (N,) values, and (M,) values of a bank.
        factors: lambda of each label; a tensor is left to what composes the terms.
        mode: "hard" or "linear", of all labels.
        correct_grad: divide the loss of a label by its mean weight where that is above 0.
        bank: (M, D), dtype and device of `z`: further columns, not differentiable here.
        impl: implementation of the op.

    Returns:
        The terms, differentiable in `z` and without a bank in a tensor `tau`; None where the
        implementation has no such op, and where a gradient is needed that it does not have.

    Raises:
        TypeError: a dtype does not fit; floating labels without a window.
        ValueError: a shape, a device, a range, `mode` or `impl` does not fit.
    """
    check_mode(mode)
    if len(factors) != len(labels):
        raise ValueError(f"factors must have one value a label, {len(labels)}, got {len(factors)}")
    kind, tensors = _kind(z, bank, labels)
    is_checked = not torch.compiler.is_compiling() and _checked.get(kind, tensors)
    if not is_checked:
        check_rows("z", z)
        if is_transformed() or z.numel() == 0:
            return None
        z = unwrap_if_dead(z)
    name = fusing(impl, "contrastive_terms", z)
    if name is None:
        return None
    numbers = tuple([x for x in factors if isinstance(x, (int, float))])
    if len(numbers) < len(factors):
        return None
    number, tensor = number_or_tensor(positive_scalar("tau", tau, z, finite=True))
    if bank is not None and (not takes_bank(name) or needs_gradient(bank, tensor)):
        return None
    if not is_checked:
        if bank is not None:
            check_bank(z, bank, labels)
            bank = unwrap_if_dead(bank)
        for label in labels:
            if bank is None:
                check_no_references(label)
            check_labels("labels", label.values, z.shape[0], z, label.window)
        _checked.put(*_kind(z, bank, labels), True)
    paced = [with_pace(label, z) for label in labels]
    # the Function cannot see it: it runs without gradients
    has_backward = torch.is_grad_enabled() and needs_gradient(z, tensor)
    how = _How(name, number, numbers, mode, correct_grad, has_backward)
    terms: ContrastiveTerms
    _, _, terms = _ContrastiveTerms.apply_to_plain((how, paced), z, bank, tensor)
    return terms


def _kind(
    z: Tensor, bank: Tensor | None, labels: Sequence[Label]
) -> tuple[tuple[Any, ...], list[Tensor]]:
    """Return all that is checked but numbers, the tensors apart."""
    kind: list[Any] = [bank is None]
    tensors = [z] if bank is None else [z, bank]
    for values, _, window, ref_values in labels:
        kind += window, ref_values is None
        tensors.append(values)
        if ref_values is not None:
            tensors.append(ref_values)
    return tuple(kind), tensors


class _ContrastiveTerms(FusedFunction):
    @staticmethod
    def forward(
        ctx: Any,
        how_and_labels: tuple[_How, list[Label]],
        z: Tensor,
        bank: Tensor | None,
        tau: Tensor | None,
    ) -> tuple[Tensor, Tensor, ContrastiveTerms]:
        how, labels = how_and_labels
        terms: ContrastiveTerms
        terms, kept = fused(how.name, "contrastive_terms_fwd")(
            Pairs(z, bank, how.tau if tau is None else tau),
            labels,
            how.factors,
            how.mode,
            correct_grad=how.correct_grad,
            has_backward=how.has_backward,
        )
        values, gammas = [], []
        ctx.paces = []
        for label in labels:
            number, tensor = number_or_tensor(label.gamma)
            ctx.paces.append((number, label.window))
            gammas.append(tensor)
            values.append(label.values)
        ctx.how, ctx.pieces = how, kept.pieces
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z, bank, tau, terms.lse, *values, *gammas, *kept.memory)
        return terms.loss, terms.losses, terms

    @staticmethod
    @first_order_only
    def backward(
        ctx: Any, dloss: Tensor | None, dlosses: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        if dloss is None and dlosses is None:
            return (None,) * 4
        z, bank, tau, lse, *rest = ctx.saved_tensors
        how, count = ctx.how, len(ctx.paces)
        labels = [
            Label(values, number if gamma is None else gamma, window)
            for values, gamma, (number, window) in zip(
                rest[:count], rest[count : 2 * count], ctx.paces, strict=True
            )
        ]
        kept = Kept(tuple(rest[2 * count :]), ctx.pieces)
        pairs = Pairs(z, bank, how.tau if tau is None else tau)
        backward = fused(how.name, "contrastive_terms_bwd")
        dz = backward(pairs, labels, lse, kept, dloss, dlosses, how.mode)
        _, needs_z, _, needs_tau = ctx.needs_input_grad
        dtau = tau_gradient(pairs, dz) if needs_tau else None
        return None, in_dtype_of(z, dz) if needs_z else None, None, dtau
