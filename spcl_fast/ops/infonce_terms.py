"""The scalars of InfoNCE between N anchors and M references, from the rows to their mean in one op.

L_a = mean_i (lse_i - a_i . r_i / tau)        L_r = mean_i (lse^r_i - a_i . r_i / tau)
L   = (L_a + L_r) / 2 if symmetric, else L_a

da_i = sum_j h_ij r_j / tau - c r_i / tau      c = dL / N, h with dlse = dlse^r = c / 2
dr_j = sum_i h_ij a_i / tau - c a_j / tau      (not symmetric: dlse = c, dlse^r = 0)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spcl_fast.operands import InfoNCETerms, Kept, Pairs
from spcl_fast.ops._checks import check_refs, check_rows, positive_scalar
from spcl_fast.ops._function import (
    FusedFunction,
    first_order_only,
    is_transformed,
    save,
    saved,
    tau_gradient,
)
from spcl_fast.ops._impl import Impl, fused, fuses, resolve_for


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
    check_rows("anchors", anchors)
    check_refs(anchors, refs)
    name = resolve_for(impl, anchors)
    if not fuses(name, "infonce_terms", anchors.device) or is_transformed():
        return None
    if anchors.numel() == 0:
        return None
    tau = positive_scalar("tau", tau, anchors, finite=True)
    done: list[tuple[InfoNCETerms, Kept]] = []
    loss = _InfoNCETerms.apply(anchors, refs, tau, symmetric, name, done)
    _, lse, info, num_anchors = done[0][0]
    return InfoNCETerms(loss, lse, info, num_anchors)


class _InfoNCETerms(FusedFunction):
    """What is not differentiable is no output: every one costs some microseconds."""

    @staticmethod
    def forward(
        anchors: Tensor,
        refs: Tensor,
        tau: float | Tensor,
        symmetric: bool,
        name: str,
        done: list[tuple[InfoNCETerms, Kept]],
    ) -> Tensor:
        forward = fused(name, "infonce_terms_fwd")
        done.append(forward(Pairs(anchors, refs, tau), symmetric=symmetric))
        return done[0][0].loss

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        anchors, refs, tau, ctx.symmetric, ctx.name, ((terms, kept),) = inputs
        ctx.pieces = kept.pieces
        save(ctx, anchors, refs, tau, terms.lse, *kept.memory)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        anchors, refs, tau, lse, *memory = saved(ctx)
        needs_anchors, needs_refs, needs_tau, *_ = ctx.needs_input_grad
        pairs = Pairs(anchors, refs, tau)
        da, drefs = fused(ctx.name, "infonce_terms_bwd")(
            pairs,
            lse,
            Kept(tuple(memory), ctx.pieces),
            dloss,
            symmetric=ctx.symmetric,
            needs_z=needs_anchors or needs_tau,
            needs_refs=needs_refs,
        )
        dtau = tau_gradient(pairs, da) if needs_tau else None
        return da if needs_anchors else None, drefs, dtau, None, None, None
