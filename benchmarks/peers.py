"""Fused contrastive losses of other packages, which need a GPU, on the problems they can compute.

All but siglip-kernel compute a cross-entropy over the similarities of two sets of rows, so they
appear in infonce and clip only; siglip-kernel has a problem of its own. inf-cl, liger-kernel and
cut-cross-entropy compute one direction and are called once for each; a row's target is the index of
its reference. In half precision the only way to pass them a temperature is to scale one side, which
rounds it; their users do the same.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.problem import DIAGONAL, SIGLIP_BIAS, Kind, Problem

Loss = Callable[[Tensor, Tensor], Tensor]  # anchors, references -> loss
MOST_HEAD_DIM = 256  # of inf-cl
NO_MARGIN = 4.0  # above the largest difference of two cosines: memeff then masks nothing


class UnavailableError(Exception):
    """The provider cannot run here; the message says why."""


def library(name: str) -> Any:
    """Import an optional library."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # torchvision beside a torch of another build raises RuntimeError
        package = name.split(".")[0]
        raise UnavailableError(f"{package} does not import here: {error}") from error


def directions(problem: Problem, one_way: Loss) -> Loss:
    """Return the loss of `problem` from that of the anchors against the references."""
    if problem.kind == "infonce":
        return one_way
    return lambda anchors, refs: (one_way(anchors, refs) + one_way(refs, anchors)) / 2


def inf_cl(problem: Problem) -> Loss:
    """Return the loss of arXiv:2410.17243 on one device, which computes in float32."""
    loss_fn = library("inf_cl").cal_flash_loss
    head_dim = min(problem.dim, MOST_HEAD_DIM)

    def one_way(z: Tensor, others: Tensor) -> Tensor:
        loss: Tensor = loss_fn(z, others, scale=1 / problem.tau, head_dim=head_dim)
        return loss.mean()

    return directions(problem, one_way)


def memeff(problem: Problem) -> Loss:
    """Return its CLIP loss, or its unmasked row softmax; gradients are not rescaled."""
    package = library("memeff")
    options = {"temperature": problem.tau, "normalized_inputs": True, "stable": False}
    if problem.kind == "clip":
        loss: Loss = package.MemoryEfficientCLIPLoss(**options)
    else:
        loss = package.MemoryEfficientQwen3Loss(margin=NO_MARGIN, **options)
    return loss


def liger(problem: Problem) -> Loss:
    """Return a fused linear cross-entropy with the references as its weight."""
    loss_fn = library("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()
    targets = torch.arange(problem.n, device=problem.device)

    def one_way(z: Tensor, others: Tensor) -> Tensor:
        loss: Tensor = loss_fn(others, z / problem.tau, targets)
        return loss

    return directions(problem, one_way)


def cut_cross_entropy(problem: Problem) -> Loss:
    """Return arXiv:2411.09009 with the references as classifier, without gradient filtering."""
    loss_fn = library("cut_cross_entropy").linear_cross_entropy
    targets = torch.arange(problem.n, device=problem.device)

    def one_way(z: Tensor, others: Tensor) -> Tensor:
        loss: Tensor = loss_fn(z / problem.tau, others, targets, filter_eps=None)
        return loss

    return directions(problem, one_way)


def siglip_kernel(problem: Problem) -> Loss:
    """Return the loss of arXiv:2303.15343 by the backend that it picks, with fixed scalars."""
    loss_fn = library("siglip_kernel").fused_siglip_loss
    log_scale = torch.tensor(-math.log(problem.tau), device=problem.device)
    bias = torch.tensor(SIGLIP_BIAS, device=problem.device)

    def loss(anchors: Tensor, refs: Tensor) -> Tensor:
        value: Tensor = loss_fn(anchors, refs, log_scale, bias)
        return value

    return loss


PEERS: dict[str, tuple[Callable[[Problem], Loss], tuple[Kind, ...]]] = {
    "inf-cl": (inf_cl, DIAGONAL),
    "memeff": (memeff, DIAGONAL),
    "liger-kernel": (liger, DIAGONAL),
    "cut-cross-entropy": (cut_cross_entropy, DIAGONAL),
    "siglip-kernel": (siglip_kernel, ("siglip",)),
}
