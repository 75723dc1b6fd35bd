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
from spcl_fast.ops._checks import check_refs, check_rows, check_scalar
from spcl_fast.ops._first_order import OpFunction, first_order_only
from spcl_fast.ops._impl import Impl, resolve_for, rows_for
from spcl_fast.ops._library import pair_lse_bwd, pair_lse_fwd
from spcl_fast.precision import accumulator_dtype, dtype_of_results, no_autocast


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
    """Compute log-sum-exp over the similarities of every row, without the row itself.

    Memory is O(N D) except with impl="reference", which alone can be differentiated twice.
    Half types are computed in float32, under `torch.autocast` too; triton, and native on a
    GPU, multiply them as they are, and have float32 from there on.

    Args:
        z: (N, D), floating. Rows need not be normalised.
        tau: temperature, finite and above 0, or a 0-dim floating tensor on the device of `z`.
        refs: (M, D), dtype and device of `z`, to compare `z` with instead of with itself; no pair
            is left out then.
        impl: "auto", "reference", "chunked", "native" or "triton".

    Returns:
        lse (N,), float32 (float64 for float64 `z`); with `refs` the pair of lse over `refs` for
        the rows of `z`, (N,), and lse over `z` for the rows of `refs`, (M,). A row with nothing to
        compare has -inf and no gradient. Differentiable in `z`, `refs` and a tensor `tau`.

    Raises:
        TypeError: `z` or `refs` is not floating, or their dtypes differ.
        ValueError: a shape, a device, `tau` or `impl` does not fit.
    """
    check_rows("z", z)
    check_scalar("tau", tau, z, finite=True)
    if refs is not None:
        check_refs(z, refs)
    name = resolve_for(impl, z)
    z, refs = rows_for(name, z, refs)
    if name == "reference":
        with no_autocast(z.device):
            return reference.pair_lse(z, tau, refs)
    # The Function cannot see it: it runs without gradients, and its inputs require them regardless.
    has_backward = torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in (z, refs, tau)
    )
    lse, *others = _PairLse.apply(z, refs, tau, name, has_backward)
    return lse if refs is None else (lse, others[0])


class _PairLse(OpFunction):
    @staticmethod
    def forward(
        z: Tensor,
        refs: Tensor | None,
        tau: float | Tensor,
        name: str,
        has_backward: bool,
    ) -> tuple[Tensor, ...]:
        with no_autocast(z.device):
            outputs = pair_lse_fwd(name, z, refs, tau, has_backward=has_backward)
        # no None: torch.compile would give what follows it the gradient of another output
        return tuple(x for x in outputs if x is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        z, refs, tau, name, _ = inputs
        lse, *others = output
        lse_refs = None if refs is None else others.pop(0)
        kept = others[0] if others else None
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*others)
        ctx.tau, tau_tensor = (None, tau) if isinstance(tau, Tensor) else (tau, None)
        ctx.save_for_backward(z, refs, lse, lse_refs, tau_tensor, kept)
        ctx.name = name

    @staticmethod
    @first_order_only
    def backward(
        ctx: Any, dlse: Tensor | None, *dothers: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        z, refs, lse, lse_refs, tau_tensor, kept = ctx.saved_tensors
        dlse_refs = None if refs is None else dothers[0]
        if dlse is None and dlse_refs is None:
            return None, None, None, None, None
        tau = ctx.tau if tau_tensor is None else tau_tensor
        needs_z, needs_refs, needs_tau, _, _ = ctx.needs_input_grad
        dlse = torch.zeros_like(lse) if dlse is None else dlse
        if refs is not None and dlse_refs is None:
            dlse_refs = torch.zeros_like(lse_refs)
        with no_autocast(z.device):
            dz, drefs = pair_lse_bwd(
                ctx.name,
                z,
                refs,
                lse,
                lse_refs,
                dlse,
                dlse_refs,
                tau,
                kept,
                needs_z=needs_z or needs_tau,
                needs_refs=needs_refs,
            )
        dtau = None
        if needs_tau:
            dtau = -(z.to(dtype_of_results(z)) * dz).sum(dtype=accumulator_dtype(z.device)) / tau
            dtau = (dtau / 2 if refs is None else dtau).to(tau.dtype)
        return dz if needs_z else None, drefs, dtau, None, None
