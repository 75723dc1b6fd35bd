"""The scalars of InfoNCE between N anchors and M references, from the rows to their mean in one op.

L_a = mean_i (lse_i - a_i . r_i / tau)        L_r = mean_i (lse^r_i - a_i . r_i / tau)
L   = (L_a + L_r) / 2 if symmetric, else L_a

da_i = sum_j h_ij r_j / tau - c r_i / tau      c = dL / N, h with dlse = dlse^r = c / 2
dr_j = sum_i h_ij a_i / tau - c a_j / tau      (not symmetric: dlse = c, dlse^r = 0)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import unwrap_if_dead

from spcl_fast.alike import Alike
from spcl_fast.operands import InfoNCETerms, Kept, Pairs
from spcl_fast.ops._checks import check_refs, check_rows, positive_scalar
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
from spcl_fast.ops._impl import Impl, fused, fusing


def infonce_terms(
    anchors: Tensor,
    refs: Tensor,
    tau: float | Tensor,
    *,
    symmetric: bool,
    impl: Impl = "auto",
) -> InfoNCETerms | None:
    """Compute the terms of InfoNCE if an implementation has them in one op, otherwise return None.

    Args:
        anchors: (N, D), floating.
        refs: (M, D) with M >= N, dtype and device of `anchors`; M = N if symmetric.
        tau: temperature, finite and above 0, or a 0-dim floating tensor on the device of `anchors`.
        symmetric: average both directions.
        impl: implementation of the op.

    Returns:
        The terms, differentiable in `anchors`, `refs` and a tensor `tau`; None where the
        implementation has no such op.

    Raises:
        TypeError: a dtype does not fit.
        ValueError: a shape, a device, a range or `impl` does not fit.
    """
    if torch.compiler.is_compiling() or not _checked.get(symmetric, (anchors, refs)):
        check_rows("anchors", anchors)
        check_refs(anchors, refs, rows="anchors")
        N, M = anchors.shape[0], refs.shape[0]
        if M < N or (symmetric and M > N):
            count = f"{N} rows as anchors, being symmetric" if symmetric else f"at least {N} rows"
            raise ValueError(f"refs must have {count}, got {M}")
        if is_transformed() or anchors.numel() == 0:
            return None
        anchors, refs = unwrap_if_dead(anchors), unwrap_if_dead(refs)
        _checked.put(symmetric, (anchors, refs), True)
    name = fusing(impl, "infonce_terms", anchors)
    if name is None:
        return None
    number, tensor = number_or_tensor(positive_scalar("tau", tau, anchors, finite=True))
    # the Function cannot see it: it runs without gradients
    has_backward = torch.is_grad_enabled() and needs_gradient(anchors, refs, tensor)
    how = _How(name, number, symmetric, has_backward)
    terms: InfoNCETerms
    _, terms = _InfoNCETerms.apply_to_plain(how, anchors, refs, tensor)
    return terms


def _empty_native_fwd(anchors: Tensor, refs: Tensor) -> tuple[Tensor, ...]:
    count = anchors.new_empty((), dtype=torch.int64)
    lse, refs_lse = (x.new_empty(x.shape[0]) for x in (anchors, refs))
    return anchors.new_empty(()), lse, anchors.new_empty(3), count, refs_lse, anchors.new_empty(0)


# On a CPU alone.
define_native(
    "infonce_terms_fwd_native(Tensor anchors, Tensor refs, float tau, bool symmetric,"
    " SymInt cache_size) -> (Tensor loss, Tensor lse, Tensor info, Tensor num_anchors,"
    " Tensor refs_lse, Tensor cache)",
    _empty_native_fwd,
)
define_native(
    "infonce_terms_bwd_native(Tensor anchors, Tensor refs, float tau, bool symmetric, Tensor lse,"
    " Tensor dloss, Tensor refs_lse, Tensor cache, bool needs_z, bool needs_refs)"
    " -> (Tensor da, Tensor drefs)",
    lambda anchors, refs, needs_z, needs_refs: tuple(
        x.new_empty(x.shape[0] if needed else 0, x.shape[1])
        for x, needed in ((anchors, needs_z), (refs, needs_refs))
    ),
)


_checked: Alike[bool] = Alike()


class _How(NamedTuple):
    name: str
    tau: float  # unless it is a tensor
    symmetric: bool
    has_backward: bool


class _InfoNCETerms(FusedFunction):
    @staticmethod
    def forward(
        ctx: Any, how: _How, anchors: Tensor, refs: Tensor, tau: Tensor | None
    ) -> tuple[Tensor, InfoNCETerms]:
        terms: InfoNCETerms
        terms, kept = fused(how.name, "infonce_terms_fwd")(
            Pairs(anchors, refs, how.tau if tau is None else tau),
            symmetric=how.symmetric,
            has_backward=how.has_backward,
        )
        ctx.how, ctx.pieces = how, kept.pieces
        ctx.save_for_backward(anchors, refs, tau, terms.lse, *kept.memory)
        return terms.loss, terms

    @staticmethod
    @first_order_only
    def backward(ctx: Any, dloss: Tensor, _: None) -> tuple[Tensor | None, ...]:
        anchors, refs, tau, lse, *memory = ctx.saved_tensors
        _, needs_anchors, needs_refs, needs_tau = ctx.needs_input_grad
        how = ctx.how
        pairs = Pairs(anchors, refs, how.tau if tau is None else tau)
        da, drefs = fused(how.name, "infonce_terms_bwd")(
            pairs,
            lse,
            Kept(tuple(memory), ctx.pieces),
            dloss,
            symmetric=how.symmetric,
            needs_z=needs_anchors or needs_tau,
            needs_refs=needs_refs,
        )
        dtau = tau_gradient(pairs, da) if needs_tau else None
        da = in_dtype_of(anchors, da) if needs_anchors else None
        drefs = in_dtype_of(refs, drefs) if needs_refs else None
        return None, da, drefs, dtau
