"""Who computes the losses: ours, plain PyTorch, and the libraries that people use.

A provider takes part in the problems where it computes the same loss. `products` is
`S = z @ z.T; S @ z`, the two matrix products that dense code cannot avoid, and no loss. Of a bank
z holds the anchors and then the references.
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
from spcl_fast import SelfPacedContrastiveLoss, pair_lse, positive_pair_loss, reference
from spcl_fast.ops import Impl
from spcl_fast.ops._impl import resolve

Step = Callable[[Tensor], tuple[Tensor, Tensor]]  # z -> loss, gradient of z
ALL: tuple[Kind, ...] = get_args(Kind)
LIBRARIES: tuple[Kind, ...] = ("supcon", "ntxent")
ONE_LABEL: tuple[Kind, ...] = ("self-paced", *LIBRARIES)
SQUARE: tuple[Kind, ...] = (*ONE_LABEL, "meta-labels")


def few_copies(problem: Problem) -> int:
    """Return the size of some copies of z."""
    return 5 * (problem.n + problem.num_refs) * problem.dim


class UnavailableError(Exception):
    """This provider cannot run here; the message is a sentence that says why."""


@dataclass(frozen=True)
class Provider:
    """How to run one provider, and on what."""

    build: Callable[[Problem], Step]
    """Raises UnavailableError."""
    kinds: tuple[Kind, ...] = ALL
    num_floats: Callable[[Problem], int] = few_copies
    """Float32 numbers alive at the peak beyond the inputs, for the memory budget."""
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
    if problem.kind == "bank":
        return bank(impl, problem)
    loss_fn = SelfPacedContrastiveLoss(problem.tau, impl=impl)
    labels = problem.meta_labels() if problem.kind == "meta-labels" else problem.labels()
    return differentiate(lambda z: loss_fn(z, labels, problem.gamma).loss)


def bank(impl: Impl, problem: Problem) -> Step:
    labels, ref_labels = problem.labels(), problem.ref_labels()

    def loss(z: Tensor) -> Tensor:
        anchors, refs = torch.tensor_split(z, [problem.n])
        lse, _ = pair_lse(anchors, problem.tau, refs=refs, impl=impl)
        return positive_pair_loss(
            anchors,
            lse,
            labels,
            tau=problem.tau,
            gamma=problem.gamma,
            mode="linear",
            refs=refs,
            ref_labels=ref_labels,
            impl=impl,
        ).loss.mean()

    return differentiate(loss)


def dense(problem: Problem) -> Step:
    """Return the reference; of a bank one product, one logsumexp and sums of the classes."""
    if problem.kind != "bank":
        return ours("reference", problem)
    labels, ref_labels = problem.labels(), problem.ref_labels()
    num_refs = ref_labels.bincount(minlength=problem.classes)

    def loss(z: Tensor) -> Tensor:
        anchors, refs = torch.tensor_split(z, [problem.n])
        sums = refs.new_zeros(problem.classes, problem.dim).index_add(0, ref_labels, refs)
        positive = (anchors * sums[labels]).sum(1) / num_refs[labels]
        lse = (anchors @ refs.T / problem.tau).logsumexp(1)
        return torch.mean(lse - positive / problem.tau)

    return differentiate(loss)


def native_with(tile_cache_mib: int, problem: Problem) -> Step:
    """Return the native step with so much memory for tiles of the forward."""
    step = ours("native", problem)
    cache = library("spcl_fast.native")

    def with_cache(z: Tensor) -> tuple[Tensor, Tensor]:
        before = cache.get_tile_cache_mib()
        cache.set_tile_cache_mib(tile_cache_mib)
        try:
            return step(z)
        finally:
            cache.set_tile_cache_mib(before)

    return with_cache


def dense_loss(z: Tensor, labels: Tensor, tau: float, gamma: Tensor) -> Tensor:
    lse = reference.pair_lse(z, tau)
    assert isinstance(lse, Tensor)
    return reference.positive_pair_loss(z, lse, labels, tau=tau, gamma=gamma, mode="linear")[
        0
    ].mean()


def compiled(problem: Problem) -> Step:
    """Return the reference, compiled for this N."""
    torch.compiler.reset()  # past a number of shapes, torch.compile falls back to eager
    # Worker processes of the compiler would share the cores with what is timed next.
    loss_fn = torch.compile(dense_loss, dynamic=False, options={"compile_threads": 1})
    labels = problem.labels()
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


def matrices(count: float) -> Callable[[Problem], int]:
    """Return the memory of `count` matrices of all pairs."""
    return lambda problem: math.ceil(count * problem.num_pairs)


def with_tiles(problem: Problem) -> int:
    return few_copies(problem) + min(problem.num_pairs, 2**26)


# Matrices at the peak: results/cpu/losses.json.
PROVIDERS: dict[str, Provider] = {
    "products": Provider(products, SQUARE, matrices(1), is_loss=False),
    "dense": Provider(dense, num_floats=matrices(6)),
    "torch.compile": Provider(compiled, ONE_LABEL, matrices(3)),
    "chunked": Provider(functools.partial(ours, "chunked")),
    "native": Provider(functools.partial(ours, "native"), num_floats=with_tiles),
    "native, no cache": Provider(functools.partial(native_with, 0)),
    "SupContrast": Provider(supcontrast, LIBRARIES, matrices(6.5)),
    "pytorch-metric-learning": Provider(
        pytorch_metric_learning, LIBRARIES, matrices(12), normalises=True
    ),
    "lightly": Provider(lightly, ("ntxent",), matrices(8), normalises=True),
    "MONAI": Provider(monai, ("ntxent",), lambda p: 6 * p.num_pairs * p.dim, normalises=True),
}
OURS = ("dense", "chunked", "native", "native, no cache")
