"""What the Functions of the ops have in common: one derivative, in reverse, and no vmap.

A jvp that says so too would be in the way of torch.compile, which refuses Functions with one.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]


class OpFunction(torch.autograd.Function):
    """A Function that `torch.func.grad` takes, and that says what vmap needs."""

    def __init_subclass__(cls) -> None:
        """Work out now what `apply` asks for in every call: 20 us, a tenth of a small step."""
        cls.forward.__signature__ = inspect.signature(cls.forward)  # type: ignore[attr-defined]

    @staticmethod
    def vmap(*_: Any) -> Any:
        """Raise: the ops take one matrix."""
        raise RuntimeError('vmap needs impl="reference", the only one that has it')


class _NoSecondOrder(OpFunction):
    @staticmethod
    def forward(gradient: Tensor, *_differentiable: Tensor | None) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> None:
        raise RuntimeError(
            'a second derivative needs impl="reference" and no group, where alone there is one'
        )


def first_order_only(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Wrap the `backward` of an `autograd.Function` so that differentiating it again raises.

    `once_differentiable` does so only if the upstream gradient has a graph: a gradient penalty
    on the plain loss would lose its term without a word.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *upstream: Tensor | None) -> Gradients:
        if not torch.is_grad_enabled():  # create_graph=False
            return backward(ctx, *upstream)
        for x in upstream:
            if x is not None:
                _NoSecondOrder.apply(x)  # raises where x is batched, by torch.func.jacrev
        with torch.no_grad():
            gradients = backward(ctx, *upstream)
        # a gradient depends on what was saved and on what came from above
        depends_on = (*ctx.saved_tensors, *upstream)
        return tuple(None if x is None else _NoSecondOrder.apply(x, *depends_on) for x in gradients)

    return wrapper
