"""The providers of the losses: ours, plain PyTorch, and other libraries.

A provider takes part in the problems where it computes the same loss. `products` is not a loss but
`S = z @ z.T; S @ z`, the two matrix products that dense code cannot avoid. With references, z holds
the anchors, then the references. In half precision dense code multiplies without conversion and
continues in float32, as under `torch.autocast`; the other libraries run under autocast.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from benchmarks.peers import PEERS, Loss, UnavailableError, library
from benchmarks.problem import DIAGONAL, SIGLIP_BIAS, TWO_SIDED, Kind, Problem
from spcl_fast import (
    InfoNCELoss,
    SelfPacedContrastiveLoss,
    pair_lse,
    positive_pair_loss,
    reference,
)
from spcl_fast.operands import Label, Pairs
from spcl_fast.ops import Impl
from spcl_fast.ops._impl import resolve
from spcl_fast.precision import at_least_float32

Step = Callable[[Tensor], tuple[Tensor, Tensor]]  # z -> loss, gradient of z
ALL: tuple[Kind, ...] = get_args(Kind)
SOFTMAX: tuple[Kind, ...] = tuple(kind for kind in ALL if kind != "siglip")
LIBRARIES: tuple[Kind, ...] = ("supcon", "ntxent")
ONE_LABEL: tuple[Kind, ...] = ("self-paced", *LIBRARIES)
SQUARE: tuple[Kind, ...] = (*ONE_LABEL, "meta-labels")
BOTH = ("cpu", "cuda")


def few_copies(problem: Problem) -> int:
    """Return the number of floats in a few copies of z."""
    return 5 * (problem.n + problem.num_refs) * problem.dim


@dataclass(frozen=True)
class Provider:
    """How to run one provider, and on what."""

    build: Callable[[Problem], Step]
    """Raises UnavailableError."""
    kinds: tuple[Kind, ...] = SOFTMAX
    num_floats: Callable[[Problem], int] = few_copies
    """Float32 numbers alive at the peak beyond the inputs, for the memory budget."""
    devices: tuple[str, ...] = BOTH
    """Where it runs."""
    normalises: bool = False
    """Normalises the rows itself: its gradient has no component along the row."""
    is_loss: bool = True


def differentiate(loss: Callable[[Tensor], Tensor]) -> Step:
    """Return the step that runs `loss` forward and backward."""

    def step(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        value = loss(z)
        (grad,) = torch.autograd.grad(value, z)
        return value.detach(), grad

    return step


def under_autocast(problem: Problem, loss: Callable[[Tensor], Tensor]) -> Step:
    """Return the step of `loss`, under autocast in half precision."""
    if not problem.is_half:
        return differentiate(loss)

    def mixed(z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, dtype=z.dtype):
            return loss(z)

    return differentiate(mixed)


def of_two_sides(problem: Problem, loss: Loss) -> Step:
    """Return the step of a loss of anchors and references."""
    return differentiate(lambda z: loss(*torch.tensor_split(z, [problem.n])))


def products(problem: Problem) -> Step:
    def step(z: Tensor) -> tuple[Tensor, Tensor]:
        sim = z @ z.T
        return sim[0, 0], sim @ z

    return step


def ours(impl: Impl, problem: Problem) -> Step:
    try:
        resolve(impl, torch.device(problem.device))
    except (ImportError, RuntimeError, ValueError) as error:
        raise UnavailableError(str(error)) from error
    if problem.kind == "bank":
        return bank(impl, problem)
    if problem.kind in DIAGONAL:
        infonce = InfoNCELoss(problem.tau, symmetric=problem.kind == "clip", impl=impl)
        return of_two_sides(problem, lambda anchors, refs: infonce(anchors, refs).loss)
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
    """Return plain PyTorch: the reference, or half-precision products and float32 afterwards.

    A bank takes one product, one logsumexp and sums over classes; infonce and clip take the
    cross-entropy of the similarities, siglip the softplus of every one.
    """
    if problem.kind == "siglip":
        return of_two_sides(problem, lambda a, r: sigmoid_loss(a, r, problem.tau))
    if problem.kind in DIAGONAL:
        return dense_diagonal(problem)
    if problem.kind == "bank":
        return dense_bank(problem)
    if not problem.is_half:
        return ours("reference", problem)
    one = {"": problem.labels()} if problem.kind != "meta-labels" else problem.meta_labels()
    labels = torch.stack(list(one.values()))
    return differentiate(lambda z: half_loss(z, labels, problem.tau, problem.gamma))


def dense_bank(problem: Problem) -> Step:
    labels, ref_labels = problem.labels(), problem.ref_labels()
    num_refs = ref_labels.bincount(minlength=problem.classes)

    def loss(z: Tensor) -> Tensor:
        anchors, refs = torch.tensor_split(z, [problem.n])
        wide = at_least_float32(refs)
        sums = wide.new_zeros(problem.classes, problem.dim).index_add(0, ref_labels, wide)
        positive = (anchors * sums[labels]).sum(1) / num_refs[labels]
        lse = (at_least_float32(anchors @ refs.T) / problem.tau).logsumexp(1)
        return torch.mean(lse - positive / problem.tau)

    return differentiate(loss)


def dense_diagonal(problem: Problem) -> Step:
    targets = problem.labels()

    def loss(anchors: Tensor, refs: Tensor) -> Tensor:
        return cross_entropy(anchors, refs, targets, problem.tau, problem.kind == "clip")

    return of_two_sides(problem, loss)


def cross_entropy(
    anchors: Tensor, refs: Tensor, targets: Tensor, tau: float, symmetric: bool
) -> Tensor:
    sim = at_least_float32(anchors @ refs.T) / tau
    loss = torch.nn.functional.cross_entropy(sim, targets)
    if not symmetric:
        return loss
    return (loss + torch.nn.functional.cross_entropy(sim.T, targets)) / 2


def sigmoid_loss(anchors: Tensor, refs: Tensor, tau: float) -> Tensor:
    logits = at_least_float32(anchors @ refs.T) / tau + SIGLIP_BIAS
    negated = logits - 2 * torch.diag(logits.diagonal())
    return torch.nn.functional.softplus(negated).sum() / len(anchors)


def native_with(tile_cache_mib: int, problem: Problem) -> Step:
    """Return the native step with a tile cache of `tile_cache_mib`."""
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
    pairs, label = Pairs(z, None, tau), Label(labels, gamma)
    return reference.positive_pair_loss(pairs, lse, label, "linear").loss.mean()


def half_loss(z: Tensor, labels: Tensor, tau: float, gamma: float | Tensor) -> Tensor:
    """Return the dense loss of half-precision z (N, D), summed over the `labels` (K, N)."""
    sim = at_least_float32(z @ z.T) / tau
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    pair_loss = sim.masked_fill(own, -math.inf).logsumexp(1, keepdim=True) - sim
    weight_loss = pair_loss * (1 - pair_loss.detach() / gamma).clamp_min(0)
    loss = z.new_zeros((), dtype=sim.dtype)
    for one in labels:
        positive = (one[:, None] == one) & ~own
        loss = loss + ((weight_loss * positive).sum(1) / positive.sum(1)).mean()
    return loss


def compiled(problem: Problem) -> Step:
    """Return the dense code, compiled for this N."""
    torch.compiler.reset()  # past a number of shapes, torch.compile falls back to eager
    # Worker processes of the compiler would share the cores with what is timed next.
    options: dict[str, str | int | bool | Callable[..., Any]] = {"compile_threads": 1}
    labels = problem.labels()
    gamma = torch.tensor(problem.gamma, device=problem.device)
    if problem.kind in DIAGONAL:
        pair = torch.compile(cross_entropy, dynamic=False, options=options)
        is_clip = problem.kind == "clip"
        step = of_two_sides(problem, lambda a, r: pair(a, r, labels, problem.tau, is_clip))
    elif problem.kind == "siglip":
        sigmoid = torch.compile(sigmoid_loss, dynamic=False, options=options)
        step = of_two_sides(problem, lambda a, r: sigmoid(a, r, problem.tau))
    elif problem.is_half:
        half = torch.compile(half_loss, dynamic=False, options=options)
        step = differentiate(lambda z: half(z, labels[None], problem.tau, gamma))
    else:
        loss_fn = torch.compile(dense_loss, dynamic=False, options=options)
        step = differentiate(lambda z: loss_fn(z, labels, problem.tau, gamma))
    try:
        step(problem.embeddings())
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UnavailableError(f"torch.compile does not run here: {reason}") from error
    return step


def peer(name: str, problem: Problem) -> Step:
    """Return the step of a package of benchmarks/peers.py."""
    build, _ = PEERS[name]
    return of_two_sides(problem, build(problem))


def supcontrast_loss(z: Tensor, labels: Tensor, tau: float) -> Tensor:
    """Return arXiv:2004.11362, eq. 2, as a training script writes it: masks and a shifted exp."""
    sim = z @ z.T / tau
    sim = sim - sim.max(dim=1, keepdim=True).values.detach()
    others = 1 - torch.eye(len(z), device=z.device)
    positives = (labels[:, None] == labels).float() * others
    log_prob = sim - (sim.exp() * others).sum(dim=1, keepdim=True).log()
    return -((positives * log_prob).sum(dim=1) / positives.sum(dim=1)).mean()


def supcontrast(problem: Problem) -> Step:
    labels = problem.labels()
    return under_autocast(problem, lambda z: supcontrast_loss(z, labels, problem.tau))


def pytorch_metric_learning(problem: Problem) -> Step:
    losses = library("pytorch_metric_learning.losses")
    loss_fn, labels = losses.SupConLoss(temperature=problem.tau), problem.labels()
    return under_autocast(problem, lambda z: loss_fn(z, labels))


def monai(problem: Problem) -> Step:
    loss_fn = library("monai.losses").ContrastiveLoss(temperature=problem.tau)
    return under_autocast(problem, lambda z: loss_fn(*z.chunk(2)))


def lightly(problem: Problem) -> Step:
    loss_fn = library("lightly.loss").NTXentLoss(temperature=problem.tau)
    return under_autocast(problem, lambda z: loss_fn(*z.chunk(2)))


def matrices(count: float) -> Callable[[Problem], int]:
    """Return the memory of `count` matrices of all pairs."""
    return lambda problem: math.ceil(count * problem.num_pairs)


def with_tiles(problem: Problem) -> int:
    return few_copies(problem) + min(problem.num_pairs, 2**26)


# Matrices at the peak: results/cpu/losses.json.
PROVIDERS: dict[str, Provider] = {
    "products": Provider(products, SQUARE, matrices(1), is_loss=False),
    "dense": Provider(dense, ALL, matrices(6)),
    "torch.compile": Provider(compiled, (*ONE_LABEL, *TWO_SIDED), matrices(3)),
    "chunked": Provider(functools.partial(ours, "chunked")),
    "native": Provider(functools.partial(ours, "native"), num_floats=with_tiles),
    "native, no cache": Provider(functools.partial(native_with, 0), devices=("cpu",)),
    "SupContrast": Provider(supcontrast, LIBRARIES, matrices(6.5)),
    "pytorch-metric-learning": Provider(
        pytorch_metric_learning, LIBRARIES, matrices(12), normalises=True
    ),
    "lightly": Provider(lightly, ("ntxent",), matrices(8), normalises=True),
    "MONAI": Provider(monai, ("ntxent",), lambda p: 6 * p.num_pairs * p.dim, normalises=True),
    "triton": Provider(functools.partial(ours, "triton"), devices=("cuda",)),
    **{
        name: Provider(functools.partial(peer, name), kinds, devices=("cuda",))
        for name, (_, kinds) in PEERS.items()
    },
}
OURS = ("dense", "chunked", "native", "native, no cache", "triton")
