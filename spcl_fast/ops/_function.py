"""What the Functions of the ops have in common: one derivative, in reverse, and no vmap.

No jvp raises an error of its own, since torch.compile refuses Functions that define one.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import unwrap_if_dead

from spcl_fast.operands import Pairs
from spcl_fast.precision import accumulator_dtype, dtype_of_results

Gradients = tuple[Tensor | None, ...]


def is_transformed() -> bool:
    """Return whether torch.compile traces or a transform of torch.func is active."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


class _Bound(NamedTuple):
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def apply_defaults(self) -> None:
        """Do nothing: there are none."""


class _PositionalSignature(inspect.Signature):
    """Parameters without defaults, given by position, so that nothing has to be bound."""

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        return _Bound(args, kwargs)


class OpFunction(torch.autograd.Function):
    """A Function that supports `torch.func.grad`, and whose error under vmap says what to use.

    `forward` is given all of its arguments by position.
    """

    def __init_subclass__(cls) -> None:
        """Compute once what `apply` would in every call, a tenth of a small step."""
        parameters = list(inspect.signature(cls.forward).parameters.values())
        cls.forward.__signature__ = _PositionalSignature(parameters)  # type: ignore[attr-defined]

    @staticmethod
    def vmap(*_: Any) -> Any:
        """Raise: the ops take one matrix."""
        raise RuntimeError('vmap needs impl="reference", the only one that has it')


class FusedFunction(torch.autograd.Function):
    """A Function of a whole loss, which neither torch.compile nor torch.func sees.

    So `forward` takes the context, as torch.func does not allow: one call less. It is given all
    that is no tensor first, in one value, and what is not differentiable is in a tuple among its
    results: every argument and every output that is a tensor costs the host.
    """

    apply_to_plain: Callable[..., Any]

    def __init_subclass__(cls) -> None:
        """Find once what `apply` of torch ends in, which takes no wrappers of torch.func."""
        cls.apply_to_plain = super(torch.autograd.Function, cls).apply  # type: ignore[misc]


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Return whether any requires a gradient."""
    for x in tensors:  # noqa: SIM110 (a generator costs as much again)
        if x is not None and x.requires_grad:
            return True
    return False


def number_or_tensor(x: float | Tensor) -> tuple[float, Tensor | None]:
    """Return a number, NaN where x is a tensor, and that tensor.

    Whether a number is a tensor must not be asked: the answer takes as long as half a launch.
    """
    return (x, None) if isinstance(x, float) else (math.nan, unwrap_if_dead(x))


def save(ctx: Any, *values: Any) -> None:
    """Save tensors, numbers and other values for the backward."""
    constants: dict[int, Any] = {}
    tensors: list[Tensor | None] = []
    for k, x in enumerate(values):
        if isinstance(x, Tensor):
            tensors.append(x)
        else:
            tensors.append(None)
            constants[k] = x
    ctx.constants = constants
    ctx.save_for_backward(*tensors)


def saved(ctx: Any) -> list[Any]:
    """Return what was saved, in order."""
    values = list(ctx.saved_tensors)
    for k, x in ctx.constants.items():
        values[k] = x
    return values


def in_dtype_of(z: Tensor, gradient: Tensor) -> Tensor:
    """Return a gradient in the dtype of z; `Tensor.to` would take as long to do nothing."""
    return gradient if gradient.dtype == z.dtype else gradient.to(z.dtype)


def tau_gradient(pairs: Pairs, dz: Tensor) -> Tensor:
    """Return dtau = -<z, dz> / tau, halved if every pair counts for both of its rows."""
    z, refs, tau = pairs
    assert isinstance(tau, Tensor)
    product = z.to(dtype_of_results(z)) * dz
    dtau = -product.sum(dtype=accumulator_dtype(z.device)) / tau
    return (dtau / 2 if refs is None else dtau).to(tau.dtype)


class _NoSecondOrder(OpFunction):
    @staticmethod
    def forward(gradient: Tensor, *_differentiable: Tensor | None) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> None:
        raise RuntimeError('a second derivative needs impl="reference" without a process group')


def first_order_only(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Wrap the `backward` of an `autograd.Function` so that differentiating it again raises.

    `once_differentiable` does so only if the upstream gradient has a graph: a gradient penalty
    on the plain loss would silently drop its term.
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
