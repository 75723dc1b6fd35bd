"""Inputs and error budgets for tests and benchmarks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def make_embeddings(
    num_rows: int,
    dim: int,
    *,
    norm: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Tensor:
    """Return random rows of equal norm, identical on every device.

    Args:
        num_rows: N.
        dim: D.
        norm: norm of every row, before rounding to `dtype`.
        dtype: dtype of the result.
        device: device of the result.
        seed: seed of the generator.

    Returns:
        (N, D).
    """
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(num_rows, dim, generator=generator, dtype=torch.float64)
    z = norm * torch.nn.functional.normalize(z, dim=1)
    return z.to(device=device, dtype=dtype)


def make_clusters(
    num_rows: int,
    dim: int,
    num_clusters: int,
    *,
    spread: float = 0.1,
    norm: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Tensor:
    """Return rows around random centres, with similarities near 1 within a cluster.

    Args:
        num_rows: N.
        dim: D.
        num_clusters: row i belongs to cluster i % num_clusters.
        spread: distance of a row to its centre, relative to the norm, before normalisation.
        norm: norm of every row, before rounding to `dtype`.
        dtype: dtype of the result.
        device: device of the result.
        seed: seed of the generator.

    Returns:
        (N, D).
    """
    centres = make_embeddings(num_clusters, dim, dtype=torch.float64, seed=seed)
    rows = centres[torch.arange(num_rows) % num_clusters]
    rows = rows + spread * make_embeddings(num_rows, dim, dtype=torch.float64, seed=seed + 1)
    z = norm * torch.nn.functional.normalize(rows, dim=1)
    return z.to(device=device, dtype=dtype)


def make_labels(
    num_rows: int,
    num_classes: int,
    *,
    unknown_share: float = 0.0,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Tensor:
    """Return random integer labels.

    Args:
        num_rows: N.
        num_classes: labels are drawn from [0, num_classes).
        unknown_share: expected share of rows whose label is -1.
        device: device of the result.
        seed: seed of the generator.

    Returns:
        (N,) int64.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_rows,), generator=generator)
    unknown = torch.rand(num_rows, generator=generator) < unknown_share
    return labels.masked_fill(unknown, -1).to(device)


class ProductsInTf32(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which matrix products have the errors that tensor cores have in tf32.

    Of float32 operands these see 10 bits after the point; sums are float32.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            args = tuple(_cut_to_tf32(x) for x in args)
        return func(*args, **(kwargs or {}))


def _cut_to_tf32(x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        return x
    return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


def similarity_rounding(largest: float, dtype: torch.dtype = torch.float32) -> float:
    """Return how far apart two computations of one similarity s = z_i . z_j / tau may be.

    The order in which z_i . z_j is summed depends on the CPU and on the shape of the product, so
    even s_ij and s_ji of one product differ. With u = eps / 2, rounding a partial sum is off by at
    most u times that sum, which for rows that are not parallel is near |z_i| |z_j| / sqrt(D); D
    roundings of either sign add up to about u |z_i| |z_j|, and to 3 u in the worst of many pairs.
    The division by tau, before the product or after it, adds another u. Two computations are thus
    up to 2 (3 + 1) u = 4 eps apart, relative to |z_i| |z_j| / tau. (Sums of one sign, of parallel
    rows, add up to sqrt(D) u: no more than that for the few features of most tests.)

    A log-sum-exp and a pair loss are off by as much; exp(s - lse), and with it a gradient, by as
    much relative to its size.

    Args:
        largest: |z_i| |z_j| / tau of the longest rows.
        dtype: in which similarities are accumulated.
    """
    return 4 * torch.finfo(dtype).eps * largest


def assert_within_budget(
    actual: Tensor,
    truth: Tensor,
    eager: Tensor,
    *,
    factor: float = 2.0,
    rounding: float = 0.0,
    name: str = "value",
) -> None:
    """Assert that the error of `actual` is at most `factor` times that of eager PyTorch.

    A handful of values of eager PyTorch can all be rounded the right way: `rounding` is what is
    allowed on top.

    Args:
        actual: value under test, in the dtype of `eager`; integers must be equal.
        truth: the float64 value.
        eager: the value of the reference, in the dtype of `actual`.
        factor: allowed multiple of the error of `eager`, on top of one rounding of the largest
            value.
        rounding: an error that the rounding of similarities explains, see `similarity_rounding`.
        name: name of the value in the message.

    Raises:
        AssertionError: the shapes or dtypes differ, a value is not finite where the truth is, or
            the error exceeds the budget.
    """
    assert actual.shape == truth.shape, f"{name}: shape {actual.shape} instead of {truth.shape}"
    assert actual.dtype == eager.dtype, f"{name}: {actual.dtype} instead of {eager.dtype}"
    if not actual.is_floating_point():
        assert torch.equal(actual, truth.to(actual.dtype)), f"{name}: counts differ"
        return
    finite = truth.isfinite()
    assert torch.equal(actual.double()[~finite], truth[~finite]), f"{name}: infinities differ"
    wrong = (actual.double() - truth)[finite]
    if wrong.numel() == 0:
        return
    error = wrong.abs().max().item()
    floor = torch.finfo(actual.dtype).eps * truth[finite].abs().max().item() + rounding
    budget = factor * (eager.double() - truth)[finite].abs().max().item() + floor
    assert error <= budget, f"{name}: error {error:.2e} exceeds budget {budget:.2e}"
