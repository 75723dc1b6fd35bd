"""`positive_pair_loss` by the kernels and by the reference, and the budget between them."""

from __future__ import annotations

import math
from typing import Any

import torch
from pair_values import largest_similarity, products_of
from torch import Tensor

from spcl_fast import reference
from spcl_fast.kernels import positive_pair_loss as kernels
from spcl_fast.operands import Label, Pairs
from spcl_fast.reference.positive_pair_loss import pair_losses, positive_mask
from spcl_fast.testing import assert_within_budget, similarity_rounding

TAU = 0.07


def row_lse(z: Tensor, refs: Tensor | None = None) -> Tensor:
    """Return lse (N,) float32 of rows that may be alone."""
    others = z if refs is None else refs
    sim = z.double() @ others.double().T / TAU
    if refs is None:
        sim.fill_diagonal_(-math.inf)
    return sim.logsumexp(1).nan_to_num(neginf=0.0).float()


def pace(z: Tensor, lse: Tensor, refs: Tensor | None, quantile: float) -> float:
    """Return a gamma in the middle of the widest of the gaps between losses near a quantile.

    Rounding then decides about no pair.
    """
    others = z if refs is None else refs
    values = (lse.double()[:, None] - z.double() @ others.double().T / TAU).flatten()
    values = values[values > 0.5].sort().values
    if values.numel() < 2:
        return 1.0
    near = int(quantile * values.numel())
    some = values[max(near - 50, 0) : near + 50]
    widest = int(some.diff().argmax())
    return float(some[widest : widest + 2].mean())


def operands(
    z: Tensor, lse: Tensor, labels: Tensor, refs: Any, ref_labels: Any, *how: Any
) -> tuple[Pairs, Tensor, Label, Any]:
    """Return the arguments of the op, for `how`: tau, gamma, mode and window."""
    tau, gamma, mode, window = how
    return Pairs(z, refs, tau), lse, Label(labels, gamma, window, ref_labels), mode


def kernel_results(
    z: Tensor,
    lse: Tensor,
    labels: Tensor,
    refs: Tensor | None,
    ref_labels: Tensor | None,
    *how: Any,
) -> dict[str, Tensor | None]:
    """Return the outputs, and the gradients of a weighted sum of the loss with lse held fixed."""
    given = operands(z, lse, labels, refs, ref_labels, *how)
    out = kernels.positive_pair_loss_fwd(*given)
    c = row_weights(z) / out.num_pos.clamp_min(1)
    dz, drefs = kernels.positive_pair_loss_bwd(c, *given, needs_z=True, needs_refs=refs is not None)
    return {**out._asdict(), "dz": dz, "drefs": drefs}


def reference_results(
    z: Tensor,
    lse: Tensor,
    labels: Tensor,
    refs: Tensor | None,
    ref_labels: Tensor | None,
    *how: Any,
) -> dict[str, Tensor | None]:
    """Return what `kernel_results` should."""
    z = z.detach().requires_grad_()
    refs = None if refs is None else refs.detach().requires_grad_()
    given = operands(z, lse, labels, refs, ref_labels, *how)
    loss, weight_sum, num_pos = reference.positive_pair_loss(*given)
    (row_weights(z).to(loss.dtype) * loss).sum().backward()
    return {
        "loss": loss.detach(),
        "weight_sum": weight_sum,
        "num_pos": num_pos,
        "dz": z.grad,
        "drefs": None if refs is None else refs.grad,
    }


def row_weights(z: Tensor) -> Tensor:
    return torch.linspace(-1, 2, z.shape[0], device=z.device)


def allowed(
    z: Tensor,
    lse: Tensor,
    labels: Tensor,
    refs: Tensor | None,
    ref_labels: Tensor | None,
    *how: Any,
) -> dict[str, float]:
    """Return what the rounding of similarities, losses and weights explains of every result.

    A pair loss l is off by what its similarity is, and one rounding; a linear weight 1 - l / gamma
    by that over gamma, and two roundings however small the weight is; hard weights and those of
    gamma = inf by nothing. A result is off by as much of each of its terms: w l of a loss, and
    |c| |z| / tau of a gradient.
    """
    tau, gamma, mode, window = how
    eps = torch.finfo(torch.float32).eps
    rows, others = z.double(), (z if refs is None else refs).double()
    positive = positive_mask(labels, ref_labels, window)
    losses = pair_losses(Pairs(rows, None if refs is None else others, tau), lse.double())
    largest = float(torch.where(positive, losses.abs(), 0).max()) if positive.numel() else 0.0
    of_loss = similarity_rounding(largest_similarity(z, tau, refs)) + eps * largest
    of_weight = of_loss / gamma + eps if mode == "linear" and gamma < math.inf else 0.0
    num_pos = positive.sum(1)
    sizes = positive * (row_weights(z).double().abs() / num_pos.clamp_min(1))[:, None]
    dz = sizes @ others.abs() if refs is not None else (sizes + sizes.T) @ others.abs()
    terms = {"weight_sum": num_pos.double(), "dz": dz / tau, "drefs": sizes.T @ rows.abs() / tau}
    found = {name: of_weight * float(x.max()) if x.numel() else 0.0 for name, x in terms.items()}
    return found | {"loss": of_loss + min(largest, gamma) * of_weight, "num_pos": 0.0}


def check(
    z: Tensor,
    labels: Tensor,
    *,
    refs: Tensor | None = None,
    ref_labels: Tensor | None = None,
    mode: str = "linear",
    window: float | None = None,
    gamma: float | None = None,
    as_tensors: bool = False,
    factor: float = 2.0,
) -> dict[str, Tensor | None]:
    """Assert that values and gradients are within the budget, and return them."""
    lse = row_lse(z, refs)
    if gamma is None:
        gamma = pace(z, lse, refs, 0.4)
    tau: Any = TAU
    pacing: Any = gamma
    if as_tensors:
        tau, pacing = torch.tensor(TAU, device=z.device), torch.tensor(gamma, device=z.device)
        gamma = float(torch.tensor(gamma))
    actual = kernel_results(z, lse, labels, refs, ref_labels, tau, pacing, mode, window)
    how = (float(tau), gamma, mode, window)
    wide_refs = None if refs is None else refs.double()
    truth = reference_results(z.double(), lse.double(), labels, wide_refs, ref_labels, *how)
    rounding = allowed(z, lse, labels, refs, ref_labels, *how)
    with products_of(z.dtype):
        eager = reference_results(z, lse, labels, refs, ref_labels, *how)
    for name, value in actual.items():
        expected, other = truth[name], eager[name]
        if value is None or expected is None or other is None:
            assert value is expected is other is None, name
        else:
            budget: Any = {"factor": factor, "rounding": rounding[name]}
            assert_within_budget(value, expected, other, name=name, **budget)
    return actual
