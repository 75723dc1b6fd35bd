"""Row-wise log-sum-exp of pairwise similarities, the label-free half of every loss.

    sim_ij = z_i . z_j / tau
    lse_i  = log sum_{j != i} exp(sim_ij)

    p_ij   = exp(sim_ij - lse_i)
    dz_i   = sum_j (p_ij dlse_i + p_ji dlse_j) z_j / tau
    dtau   = -<z, dz> / (2 tau)

Rectangular, with references r: nothing is left out, both log-sum-exps come from one visit, and
dz = H r / tau, dr = H^T z / tau, dtau = -<z, dz> / tau, with
H_ij = dlse_i p_ij + dlse^r_j exp(sim_ij - lse^r_j).
"""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor

from spcl_fast import reference
from spcl_fast.operands import Gradients, Lse, Pairs
from spcl_fast.ops._checks import check_refs, check_rows, positive_scalar
from spcl_fast.ops._contract import define_native, implemented
from spcl_fast.ops._function import OpFunction, first_order_only, save, saved, tau_gradient
from spcl_fast.ops._impl import Impl, resolve_for, rows_for
from spcl_fast.precision import dtype_of_results, no_autocast


@overload
def pair_lse(
    z: Tensor, tau: float | Tensor, *, refs: None = None, impl: Impl = "auto"
) -> Tensor: ...


@overload
def pair_lse(
    z: Tensor, tau: float | Tensor, *, refs: Tensor, impl: Impl = "auto"
) -> tuple[Tensor, Tensor]: ...


def pair_lse(
    z: Tensor, tau: float | Tensor, *, refs: Tensor | None = None, impl: Impl = "auto"
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute log-sum-exp over the similarities of every row, excluding the row itself.

    Memory is O(N D) except with impl="reference", the only one that can be differentiated twice.
    Half precision is computed in float32, regardless of autocast; triton, and native on a GPU,
    multiply rows in half precision and compute everything after that in float32.

    Args:
        z: (N, D), floating. Rows need not be normalised.
        tau: temperature, finite and above 0, or a 0-dim floating tensor on the device of `z`.
        refs: (M, D), dtype and device of `z`: references to compare all rows of `z` with, instead
            of comparing `z` with itself.
        impl: "auto", "reference", "chunked", "native" or "triton".

    Returns:
        lse (N,), float32 (float64 for float64 `z`); with `refs` a pair: lse over `refs` for the
        rows of `z`, (N,), and lse over `z` for the rows of `refs`, (M,). A row that is compared
        with nothing has -inf and no gradient. Differentiable in `z`, `refs` and a tensor `tau`.

    Raises:
        TypeError: `z` or `refs` is not floating, or their dtypes differ.
        ValueError: a shape, a device, `tau` or `impl` does not fit.
    """
    check_rows("z", z)
    tau = positive_scalar("tau", tau, z, finite=True)
    if refs is not None:
        check_refs(z, refs)
    name = resolve_for(impl, z)
    z, refs = rows_for(name, z, refs)
    if name == "reference":
        with no_autocast(z.device):
            return reference.pair_lse(z, tau, refs)
    # The Function cannot see it: it runs without gradients, and its inputs still require them.
    has_backward = torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in (z, refs, tau)
    )
    lse, *others = _PairLse.apply(z, refs, tau, name, has_backward)
    return lse if refs is None else (lse, others[0])


@implemented
def pair_lse_fwd(pairs: Pairs, *, has_backward: bool) -> Lse:
    """Return the log-sum-exps, and a cache only if a backward can follow."""
    rows = pairs.z.new_empty(pairs.z.shape[0], dtype=dtype_of_results(pairs.z))
    return Lse(rows, None if pairs.refs is None else rows.new_empty(pairs.refs.shape[0]))


@implemented
def pair_lse_bwd(
    pairs: Pairs,
    lse: Lse,
    dlse: Tensor,
    dlse_refs: Tensor | None,
    *,
    needs_z: bool,
    needs_refs: bool,
) -> Gradients:
    """Return dz and drefs."""
    return empty_gradients(pairs, needs_z=needs_z, needs_refs=needs_refs)


def empty_gradients(pairs: Pairs, *, needs_z: bool, needs_refs: bool) -> Gradients:
    """Return gradients of the shapes of the rows, None where not needed."""
    return Gradients(
        torch.empty_like(pairs.z, memory_format=torch.contiguous_format) if needs_z else None,
        torch.empty_like(pairs.refs, memory_format=torch.contiguous_format)
        if needs_refs and pairs.refs is not None
        else None,
    )


def _empty_native(z: Tensor, refs: Tensor | None, cache_size: int) -> tuple[Tensor, ...]:
    lse = z.new_empty(z.shape[0], dtype=torch.float32)
    return lse, lse.new_empty(0 if refs is None else refs.shape[0]), lse.new_empty(cache_size)


def empty_native_gradients(
    z: Tensor, refs: Tensor | None, needs_z: bool, needs_refs: bool
) -> tuple[Tensor, Tensor]:
    """Return gradients of the shapes of the rows, of none where not needed."""
    num_refs = refs.shape[0] if refs is not None and needs_refs else 0
    D = z.shape[1]
    return z.new_empty(z.shape[0] if needs_z else 0, D), z.new_empty(num_refs, D)


define_native(
    "pair_lse_fwd_native(Tensor z, Tensor? refs, Tensor tau, SymInt cache_size)"
    " -> (Tensor lse, Tensor lse_refs, Tensor cache)",
    _empty_native,
)
define_native(
    "pair_lse_bwd_native(Tensor z, Tensor? refs, Tensor lse, Tensor? lse_refs, Tensor dlse,"
    " Tensor? dlse_refs, Tensor tau, Tensor cache, Tensor[] labels, Tensor[] c, Tensor[] gamma,"
    " bool needs_z, bool needs_refs) -> (Tensor dz, Tensor drefs)",
    empty_native_gradients,
)


class _PairLse(OpFunction):
    @staticmethod
    def forward(
        z: Tensor, refs: Tensor | None, tau: float | Tensor, name: str, has_backward: bool
    ) -> tuple[Tensor, ...]:
        with no_autocast(z.device):
            lse = pair_lse_fwd(name, Pairs(z, refs, tau), has_backward=has_backward)
        outputs = (lse.rows, None if refs is None else lse.refs, lse.cache)
        # no None: torch.compile would give what follows it the gradient of another output
        return tuple(x for x in outputs if x is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        z, refs, tau, name, _ = inputs
        num_lse = 1 if refs is None else 2
        lse, lse_refs = output[0], None if refs is None else output[1]
        cache = output[num_lse:]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*cache)
        save(ctx, name, z, refs, tau, lse, lse_refs, *cache)

    @staticmethod
    @first_order_only
    def backward(
        ctx: Any, dlse: Tensor | None, *dothers: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        name, z, refs, tau, *rest = saved(ctx)
        pairs, lse = Pairs(z, refs, tau), Lse(*rest)
        dlse_refs = None if refs is None else dothers[0]
        if dlse is None and dlse_refs is None:
            return (None,) * 5
        needs_z, needs_refs, needs_tau, _, _ = ctx.needs_input_grad
        dlse = torch.zeros_like(lse.rows) if dlse is None else dlse
        if lse.refs is not None and dlse_refs is None:
            dlse_refs = torch.zeros_like(lse.refs)
        with no_autocast(z.device):
            dz, drefs = pair_lse_bwd(
                name,
                pairs,
                lse,
                dlse,
                dlse_refs,
                needs_z=needs_z or needs_tau,
                needs_refs=needs_refs,
            )
        dtau = tau_gradient(pairs, dz) if needs_tau and dz is not None else None
        return dz if needs_z else None, drefs if needs_refs else None, dtau, None, None
