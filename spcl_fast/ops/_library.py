"""The fused functions behind `torch.library` ops, so that torch.compile need not look inside.

Eager calls go straight to the implementation; while compiling, the same call becomes one opaque op
whose fake states the shapes. A number or tensor travels as a number and an optional tensor.
`pair_lse` of native is such an op itself, and the only one that keeps something for its backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spcl_fast import native
from spcl_fast.ops._impl import fused
from spcl_fast.precision import dtype_of_results

_LIBRARY = torch.library.Library("spcl_fast_ops", "DEF")
_SCHEMAS = {
    "pair_lse_fwd": "(Tensor z, Tensor? refs, float tau, Tensor? tau_tensor, str impl)"
    " -> (Tensor, Tensor)",
    "pair_lse_bwd": "(Tensor z, Tensor? refs, Tensor lse, Tensor? lse_refs, Tensor dlse,"
    " Tensor? dlse_refs, float tau, Tensor? tau_tensor, bool needs_z, bool needs_refs, str impl)"
    " -> (Tensor, Tensor)",
    "positive_pair_loss_fwd": "(Tensor z, Tensor lse, Tensor labels, Tensor? refs,"
    " Tensor? ref_labels, float tau, Tensor? tau_tensor, float gamma, Tensor? gamma_tensor,"
    " str mode, float? window, str impl) -> (Tensor, Tensor, Tensor)",
    "positive_pair_loss_bwd": "(Tensor c, Tensor z, Tensor lse, Tensor labels, Tensor? refs,"
    " Tensor? ref_labels, float tau, Tensor? tau_tensor, float gamma, Tensor? gamma_tensor,"
    " str mode, float? window, bool needs_z, bool needs_refs, str impl) -> (Tensor, Tensor)",
    "positive_pair_histogram": "(Tensor z, Tensor lse, Tensor labels, float tau,"
    " Tensor? tau_tensor, float upper, Tensor? upper_tensor, int bins, float? window,"
    " Tensor? refs, Tensor? ref_labels, str impl) -> Tensor",
}


def pair_lse_fwd(
    name: str, z: Tensor, refs: Tensor | None, tau: float | Tensor, *, has_backward: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return lse (N,), and (M,) of the references, by the implementation `name`, and what it kept.

    `has_backward` says whether a backward can follow.
    """
    if name == "native":
        return native.pair_lse_fwd(z, refs, tau, keep=has_backward)
    if not torch.compiler.is_compiling():
        return *fused(name, "pair_lse_fwd")(z, refs, tau), None
    lse, lse_refs = torch.ops.spcl_fast_ops.pair_lse_fwd(z, refs, *_split(tau), name)
    return lse, None if refs is None else lse_refs, None


def pair_lse_bwd(
    name: str,
    z: Tensor,
    refs: Tensor | None,
    lse: Tensor,
    lse_refs: Tensor | None,
    dlse: Tensor,
    dlse_refs: Tensor | None,
    tau: float | Tensor,
    kept: Tensor | None,
    *,
    needs_z: bool,
    needs_refs: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return dz and drefs, None where not needed, by the implementation `name`."""
    saved = (z, refs, lse, lse_refs, dlse, dlse_refs)
    if kept is not None:
        return native.pair_lse_bwd(*saved, tau, kept, needs_z=needs_z, needs_refs=needs_refs)
    if not torch.compiler.is_compiling():
        return fused(name, "pair_lse_bwd")(  # type: ignore[no-any-return]
            *saved, tau, needs_z=needs_z, needs_refs=needs_refs
        )
    dz, drefs = torch.ops.spcl_fast_ops.pair_lse_bwd(
        *saved, *_split(tau), needs_z, needs_refs, name
    )
    return dz if needs_z else None, drefs if needs_refs else None


def positive_pair_loss_fwd(
    name: str, operands: tuple[Tensor | None, ...], tau: Any, gamma: Any, mode: str, window: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, weight_sum, num_pos; operands are z, lse, labels, refs, ref_labels."""
    if not torch.compiler.is_compiling():
        return fused(name, "positive_pair_loss_fwd")(  # type: ignore[no-any-return]
            *operands, tau, gamma, mode, window
        )
    return torch.ops.spcl_fast_ops.positive_pair_loss_fwd(  # type: ignore[no-any-return]
        *operands, *_split(tau), *_split(gamma), mode, window, name
    )


def positive_pair_loss_bwd(
    name: str,
    c: Tensor,
    operands: tuple[Tensor | None, ...],
    tau: Any,
    gamma: Any,
    mode: str,
    window: Any,
    *,
    needs_z: bool,
    needs_refs: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return dz and drefs, None where not needed; operands as of the forward."""
    if not torch.compiler.is_compiling():
        return fused(name, "positive_pair_loss_bwd")(  # type: ignore[no-any-return]
            c, *operands, tau, gamma, mode, window, needs_z=needs_z, needs_refs=needs_refs
        )
    dz, drefs = torch.ops.spcl_fast_ops.positive_pair_loss_bwd(
        c, *operands, *_split(tau), *_split(gamma), mode, window, needs_z, needs_refs, name
    )
    return dz if needs_z else None, drefs if needs_refs else None


def positive_pair_histogram(
    name: str,
    operands: tuple[Tensor, Tensor, Tensor],
    tau: Any,
    upper: Any,
    bins: int,
    window: Any,
    references: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    """Return counts (bins,); operands are z, lse, labels, references are refs, ref_labels."""
    if not torch.compiler.is_compiling():
        return fused(name, "positive_pair_histogram")(  # type: ignore[no-any-return]
            *operands,
            tau=tau,
            upper=upper,
            bins=bins,
            window=window,
            refs=references[0],
            ref_labels=references[1],
        )
    return torch.ops.spcl_fast_ops.positive_pair_histogram(  # type: ignore[no-any-return]
        *operands, *_split(tau), *_split(upper), bins, window, *references, name
    )


def _split(value: float | Tensor) -> tuple[float, Tensor | None]:
    return (0.0, value) if isinstance(value, Tensor) else (float(value), None)


def _joined(number: float, tensor: Tensor | None) -> float | Tensor:
    return number if tensor is None else tensor


def _filled(x: Tensor | None, like: Tensor) -> Tensor:
    """Return a tensor where an op has nothing to return, and the strides that its fake states."""
    return like.new_empty(0) if x is None else x.contiguous()


def _run_pair_lse_fwd(z: Tensor, refs: Any, tau: float, tau_t: Any, impl: str) -> Any:
    lse, lse_refs = fused(impl, "pair_lse_fwd")(z, refs, _joined(tau, tau_t))
    return lse, _filled(lse_refs, lse)


def _fake_pair_lse_fwd(z: Tensor, refs: Any, tau: float, tau_t: Any, impl: str) -> Any:
    lse = z.new_empty(z.shape[0], dtype=dtype_of_results(z))
    return lse, lse.new_empty(0 if refs is None else refs.shape[0])


def _run_pair_lse_bwd(*args: Any) -> Any:
    *saved, tau, tau_t, needs_z, needs_refs, impl = args
    dz, drefs = fused(impl, "pair_lse_bwd")(
        *saved, _joined(tau, tau_t), needs_z=needs_z, needs_refs=needs_refs
    )
    return _filled(dz, args[0]), _filled(drefs, args[0])


def _fake_pair_lse_bwd(z: Tensor, refs: Any, *args: Any) -> Any:
    *_, needs_z, needs_refs, _impl = args
    return _fake_gradients(z, refs, needs_z, needs_refs)


def _run_positive_fwd(*args: Any) -> Any:
    *operands, tau, tau_t, gamma, gamma_t, mode, window, impl = args
    return fused(impl, "positive_pair_loss_fwd")(
        *operands, _joined(tau, tau_t), _joined(gamma, gamma_t), mode, window
    )


def _fake_positive_fwd(z: Tensor, *_: Any) -> Any:
    loss = z.new_empty(z.shape[0], dtype=dtype_of_results(z))
    return loss, torch.empty_like(loss), torch.empty_like(loss, dtype=torch.int64)


def _run_positive_bwd(*args: Any) -> Any:
    c, z, lse, labels, refs, ref_labels, tau, tau_t, gamma, gamma_t, mode, window, *last = args
    needs_z, needs_refs, impl = last
    operands = (c, z, lse, labels, refs, ref_labels, _joined(tau, tau_t), _joined(gamma, gamma_t))
    dz, drefs = fused(impl, "positive_pair_loss_bwd")(
        *operands, mode, window, needs_z=needs_z, needs_refs=needs_refs
    )
    return _filled(dz, z), _filled(drefs, z)


def _fake_positive_bwd(_c: Tensor, z: Tensor, _lse: Any, _labels: Any, refs: Any, *a: Any) -> Any:
    *_, needs_z, needs_refs, _impl = a
    return _fake_gradients(z, refs, needs_z, needs_refs)


def _fake_gradients(z: Tensor, refs: Tensor | None, needs_z: bool, needs_refs: bool) -> Any:
    dz = z.new_empty(z.shape if needs_z else 0)
    return dz, z.new_empty(refs.shape if needs_refs and refs is not None else 0)


def _run_histogram(*args: Any) -> Any:
    z, lse, labels, tau, tau_t, upper, upper_t, bins, window, refs, ref_labels, impl = args
    return fused(impl, "positive_pair_histogram")(
        z,
        lse,
        labels,
        tau=_joined(tau, tau_t),
        upper=_joined(upper, upper_t),
        bins=bins,
        window=window,
        refs=refs,
        ref_labels=ref_labels,
    )


def _fake_histogram(z: Tensor, *args: Any) -> Any:
    return z.new_empty(args[6], dtype=torch.int64)


_BODIES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "pair_lse_fwd": (_run_pair_lse_fwd, _fake_pair_lse_fwd),
    "pair_lse_bwd": (_run_pair_lse_bwd, _fake_pair_lse_bwd),
    "positive_pair_loss_fwd": (_run_positive_fwd, _fake_positive_fwd),
    "positive_pair_loss_bwd": (_run_positive_bwd, _fake_positive_bwd),
    "positive_pair_histogram": (_run_histogram, _fake_histogram),
}
for _name, _schema in _SCHEMAS.items():
    _LIBRARY.define(_name + _schema)
    _LIBRARY.impl(_name, _BODIES[_name][0], "CompositeExplicitAutograd")
    torch.library.register_fake(f"spcl_fast_ops::{_name}", _BODIES[_name][1], lib=_LIBRARY)
