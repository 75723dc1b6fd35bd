"""Backward functions that say so when they are asked for a second derivative."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]


class _NoSecondOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, _anchor: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> None:
        raise RuntimeError('a second derivative needs impl="reference", the only one that has it')


def first_order_only(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Wrap the `backward` of an `autograd.Function` so that differentiating it again raises.

    `once_differentiable` does so only if the upstream gradient has a graph: a gradient penalty
    on the plain loss would lose its term without a word.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *upstream: Tensor | None) -> Gradients:
        with torch.no_grad():
            gradients = backward(ctx, *upstream)
        if not torch.is_grad_enabled():  # create_graph=False
            return gradients
        return tuple(
            None if x is None else _NoSecondOrder.apply(x, x.new_zeros((), requires_grad=True))
            for x in gradients
        )

    return wrapper
