"""`pair_lse` by the kernels and by the reference, and the budget between them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from spcl_fast import reference
from spcl_fast.kernels import pair_lse as kernels
from spcl_fast.operands import Lse, Pairs
from spcl_fast.testing import ProductsInTf32, assert_within_budget, similarity_rounding

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# Three planes, two and two; the precision means nothing to half precision, which is its own plane.
PRECISIONS = [(BF16, "highest"), (FP16, "highest")]
PRECISIONS += [(FP32, "highest"), (FP32, "high"), (FP32, "medium")]
Values = dict[str, Tensor]


def upstream(z: Tensor, refs: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return dlse of both sides, float32."""
    dlse = torch.linspace(-1, 2, len(z), device=z.device)
    if refs is None:
        return dlse, None
    return dlse, torch.linspace(1, -2, len(refs), device=z.device)


def named(*values: Tensor | None) -> Values:
    """Return what there is of lse, lse_refs, dz and drefs."""
    both = zip(("lse", "lse_refs", "dz", "drefs"), values, strict=True)
    return {name: value.detach() for name, value in both if value is not None}


def by_kernels(
    z: Tensor, tau: float | Tensor, refs: Tensor | None = None, *, saved: Lse | None = None
) -> Values:
    """Return values and gradients, or the gradients alone for log-sum-exps that are given."""
    pairs = Pairs(z, refs, tau)
    lse = kernels.pair_lse_fwd(pairs, has_backward=True) if saved is None else saved
    given: Any = (pairs, lse, *upstream(z, refs))
    dz, drefs = kernels.pair_lse_bwd(*given, needs_z=True, needs_refs=refs is not None)
    return named(lse.rows, lse.refs, dz, drefs) if saved is None else named(None, None, dz, drefs)


def by_reference(z: Tensor, tau: float, refs: Tensor | None, dtype: torch.dtype) -> Values:
    leaves = [x.detach().to(dtype).requires_grad_() for x in (z, refs) if x is not None]
    found = reference.pair_lse(leaves[0], tau, *leaves[1:])
    outputs = [found] if isinstance(found, Tensor) else list(found)
    given = [d for d in upstream(z, refs) if d is not None]
    given = [d.to(out.dtype) for d, out in zip(given, outputs, strict=True)]
    grads = torch.autograd.grad(outputs, leaves, given)
    if refs is None:
        return named(outputs[0], None, grads[0], None)
    return named(*outputs, *grads)


def eager(z: Tensor, tau: float, refs: Tensor | None) -> Values:
    """Return what bounds the error of the kernels at the present precision."""
    with products_of(z.dtype):
        return by_reference(z, tau, refs, z.dtype)


def products_of(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Return a context in which eager products are as exact as those of the present precision."""
    if dtype == FP32 and torch.get_float32_matmul_precision() != "highest":
        return ProductsInTf32()
    return nullcontext()


def largest_similarity(z: Tensor, tau: float, refs: Tensor | None) -> float:
    """Return |z_i| |z_j| / tau of the longest rows."""
    both = (z, z if refs is None else refs)
    norms = [max(x.double().norm(dim=1).tolist(), default=0.0) for x in both]
    return norms[0] * norms[1] / tau


def check(z: Tensor, tau: float, refs: Tensor | None = None, *, factor: float = 2.0) -> None:
    """Assert that values and gradients are within `factor` times the error of eager PyTorch."""
    actual, truth = by_kernels(z, tau, refs), by_reference(z, tau, refs, torch.float64)
    others = eager(z, tau, refs)
    assert actual.keys() == truth.keys()
    rounding = similarity_rounding(largest_similarity(z, tau, refs))
    for name, value in actual.items():
        size = 1.0 if name.startswith("lse") else truth[name].abs().max().item()
        budget: Any = {"factor": factor, "rounding": rounding * size}
        assert_within_budget(value, truth[name], others[name], name=name, **budget)
