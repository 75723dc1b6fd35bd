"""Who computes the losses: ours, plain PyTorch, and the libraries that people use.

A provider takes part in the problems where it computes the same loss. `products` is
`S = z @ z.T; S @ z`, the two matrix products that dense code cannot avoid, and no loss.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from benchmarks.problem import Kind, Problem
from spcl_fast import SelfPacedContrastiveLoss, reference
from spcl_fast.ops import Impl
from spcl_fast.ops._impl import resolve

Step = Callable[[Tensor], tuple[Tensor, Tensor]]  # z -> loss, gradient of z
ALL: tuple[Kind, ...] = get_args(Kind)


class UnavailableError(Exception):
    """This provider cannot run here; the message is a sentence that says why."""


@dataclass(frozen=True)
class Provider:
    """How to run one provider, and on what."""

    build: Callable[[Problem], Step]
    """Raises UnavailableError."""
    kinds: tuple[Kind, ...] = ALL
    num_floats: Callable[[int, int], int] = lambda n, d: 5 * n * d
    """(N, D) -> float32 numbers alive at the peak beyond the inputs, for the memory budget."""
    normalises: bool = False
    """Divides rows by their length itself: its gradient has no part along the row."""
    is_loss: bool = True


def differentiate(loss: Callable[[Tensor], Tensor]) -> Step:
    """Return the step that runs `loss` forward and backward."""

    def step(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        value = loss(z)
        (grad,) = torch.autograd.grad(value, z)
        return value.detach(), grad

    return step


def products(problem: Problem) -> Step:
    def step(z: Tensor) -> tuple[Tensor, Tensor]:
        sim = z @ z.T
        return sim[0, 0], sim @ z

    return step


def ours(impl: Impl, problem: Problem) -> Step:
    try:
        resolve(impl, torch.device("cpu"))
    except (ImportError, RuntimeError, ValueError) as error:
        raise UnavailableError(str(error)) from error
    loss_fn, labels = SelfPacedContrastiveLoss(problem.tau, impl=impl), problem.labels()
    return differentiate(lambda z: loss_fn(z, labels, problem.gamma).loss)


def native_recompute(problem: Problem) -> Step:
    """Return the native step that keeps no tiles of the forward for the backward."""
    step = ours("native", problem)
    cache = library("spcl_fast.native")

    def without_cache(z: Tensor) -> tuple[Tensor, Tensor]:
        before = cache.get_tile_cache_mib()
        cache.set_tile_cache_mib(0)
        try:
            return step(z)
        finally:
            cache.set_tile_cache_mib(before)

    return without_cache


def dense_loss(z: Tensor, labels: Tensor, tau: float, gamma: Tensor) -> Tensor:
    lse = reference.pair_lse(z, tau)
    assert isinstance(lse, Tensor)
    return reference.positive_pair_loss(z, lse, labels, tau=tau, gamma=gamma, mode="linear")[
        0
    ].mean()


def compiled(problem: Problem) -> Step:
    """Return the reference, compiled for this N."""
    torch.compiler.reset()  # past a number of shapes, torch.compile falls back to eager
    loss_fn, labels = torch.compile(dense_loss, dynamic=False), problem.labels()
    gamma = torch.tensor(problem.gamma)
    step = differentiate(lambda z: loss_fn(z, labels, problem.tau, gamma))
    try:
        step(problem.embeddings())
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UnavailableError(f"torch.compile does not run here: {reason}") from error
    return step


def supcontrast(problem: Problem) -> Step:
    """Return arXiv:2004.11362, eq. 2, as a training script writes it: masks and a shifted exp."""
    labels, tau = problem.labels(), problem.tau

    def loss(z: Tensor) -> Tensor:
        sim = z @ z.T / tau
        sim = sim - sim.max(dim=1, keepdim=True).values.detach()
        others = 1 - torch.eye(len(z))
        positives = (labels[:, None] == labels).float() * others
        log_prob = sim - (sim.exp() * others).sum(dim=1, keepdim=True).log()
        return -((positives * log_prob).sum(dim=1) / positives.sum(dim=1)).mean()

    return differentiate(loss)


def pytorch_metric_learning(problem: Problem) -> Step:
    losses = library("pytorch_metric_learning.losses")
    loss_fn, labels = losses.SupConLoss(temperature=problem.tau), problem.labels()
    return differentiate(lambda z: loss_fn(z, labels))


def monai(problem: Problem) -> Step:
    loss_fn = library("monai.losses").ContrastiveLoss(temperature=problem.tau)
    return differentiate(lambda z: loss_fn(*z.chunk(2)))


def lightly(problem: Problem) -> Step:
    loss_fn = library("lightly.loss").NTXentLoss(temperature=problem.tau)
    return differentiate(lambda z: loss_fn(*z.chunk(2)))


def library(name: str) -> Any:
    """Import a library that need not be there."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # torchvision beside a torch of another build raises RuntimeError
        package = name.split(".")[0]
        raise UnavailableError(f"{package} does not import here: {error}") from error


def matrices(count: float) -> Callable[[int, int], int]:
    """Return the memory of `count` N x N matrices."""
    return lambda n, d: math.ceil(count * n * n)


# Matrices at the peak: results/cpu/losses.json.
PROVIDERS: dict[str, Provider] = {
    "products": Provider(products, num_floats=matrices(1), is_loss=False),
    "dense": Provider(functools.partial(ours, "reference"), num_floats=matrices(6)),
    "torch.compile": Provider(compiled, num_floats=matrices(3)),
    "chunked": Provider(functools.partial(ours, "chunked")),
    "native": Provider(
        functools.partial(ours, "native"),
        num_floats=lambda n, d: 5 * n * d + min(n * n // 2, 2**26),
    ),
    "native, no cache": Provider(native_recompute),
    "SupContrast": Provider(supcontrast, ("supcon", "ntxent"), matrices(6.5)),
    "pytorch-metric-learning": Provider(
        pytorch_metric_learning, ("supcon", "ntxent"), matrices(12), normalises=True
    ),
    "lightly": Provider(lightly, ("ntxent",), matrices(8), normalises=True),
    "MONAI": Provider(monai, ("ntxent",), lambda n, d: 6 * n * n * d, normalises=True),
}
OURS = ("dense", "chunked", "native", "native, no cache")
