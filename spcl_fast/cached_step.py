"""Exact gradients of a batch whose activations do not fit: gradients cached at the embeddings.

    e = model(batch)          chunk by chunk, without a graph
    g = dloss(e)/de           on all embeddings
    dtheta = sum_k (de_k/dtheta)^T g_k     chunk by chunk, each forward run again for its graph

(arXiv:2101.06983.) Memory: activations of one chunk, and the embeddings of the batch. Time: one
forward more than the plain step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from numbers import Integral
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.modules.batchnorm import _BatchNorm

from spcl_fast.devices import is_host
from spcl_fast.forward_state import Buffers, RandomStates
from spcl_fast.losses import ContrastiveLossOutput
from spcl_fast.nested import tensors_in, with_tensors
from spcl_fast.precision import no_autocast

Tensors = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
LossValue = TypeVar("LossValue", Tensor, ContrastiveLossOutput)


def cached_step(
    model: nn.Module,
    batch: Tensors,
    loss: Callable[[Any], LossValue],
    *,
    chunk: int,
    scaler: GradScaler | None = None,
) -> LossValue:
    """Accumulate the gradients of `loss(model(batch))` with the activations of one chunk at a time.

    The gradients are those of the plain step up to rounding, and are added to `.grad` as by
    `.backward()`: of the model, and of what `loss` holds, such as a learnable temperature. A batch
    of at most `chunk` rows is a plain step, except on several ranks.

    Random numbers of torch are drawn per chunk and replayed, so dropout is that of the chunks
    run one after the other, and so is the random state afterwards; Python's and NumPy's are not
    replayed. Buffers that the forward changes are changed once. An autocast around the call holds
    for the forwards and the loss, not for the backwards.

    `DistributedDataParallel` communicates only in the last chunk. Parameters that only `loss`
    uses must not be among those of the wrapped model: wrap a loss with parameters by itself.

    Example:
        >>> out = cached_step(encoder, images, lambda z: loss(z, labels), chunk=64)
        >>> optimizer.step()

    Args:
        model: called as `model(tensor)`, `model(*tuple)` or `model(**dict)`; it returns a tensor,
            or tuples, lists, mappings or dataclasses of them, with a row for every row of the
            batch, computed from that row alone. A 0-dim tensor, such as the scale of the logits,
            must be the same for all rows; anything else is taken from the last chunk.
        batch: a tensor, or a tuple or dict of tensors, all of N rows; cut along dim 0.
        loss: takes what the model would return for the whole batch, in the same types; returns a
            0-dim tensor or a `ContrastiveLossOutput`.
        chunk: rows of a chunk, at least 1; the last may have fewer.
        scaler: scales the loss before the backward; unscaling and stepping are the caller's.

    Returns:
        What `loss` returned, detached and not scaled.

    Raises:
        TypeError: `chunk` is not an int; the batch, the embeddings or the loss are of another type.
        ValueError: `chunk` is below 1; the numbers of rows differ; a BatchNorm of the model would
            normalise every chunk by itself; on a CPU, a 0-dim tensor differs between the chunks
            (elsewhere, where it is not read, it becomes NaN).
        RuntimeError: gradients are switched off; the model is a `DistributedDataParallel` with
            static_graph=True.
    """
    chunk = _checked_chunk(chunk)
    if not torch.is_grad_enabled():
        raise RuntimeError("cached_step must be called with gradients, got torch.no_grad() around")
    inputs: list[Tensor] = _batch_tensors(batch)
    num_rows = _num_rows(inputs)
    _check_static_graph(model)
    if num_rows > chunk:
        _check_batch_norm(model)
    elif not list(_outermost(model)):  # all ranks communicate in one order, few rows or many
        return _backward(loss(_call(model, batch)), scaler)
    random = RandomStates([*inputs, *model.parameters()])
    buffers = Buffers(model)
    cuts = [slice(start, start + chunk) for start in range(0, max(num_rows, 1), chunk)]

    with _NoSync(model):
        states, pieces = [], []
        for cut in cuts:
            states.append(random.capture())
            with torch.no_grad():
                output = _call(model, with_tensors(batch, [x[cut] for x in inputs]))
            pieces.append(_outputs(output, num_rows=len(range(num_rows)[cut])))
        # older PyTorch gives casts made without a graph to forwards that need one
        torch.clear_autocast_cache()
        buffers.forward_is_done()
        columns = [_column(column) for column in zip(*pieces, strict=True)]
        leaves = [x.requires_grad_() if x.is_floating_point() else x for x in columns]
        value = _backward(loss(with_tensors(output, leaves)), scaler)

    after = random.capture()
    buffers.rewind()
    for state, cut in zip(states, cuts, strict=True):
        with ExitStack() as stack:
            if cut is not cuts[-1]:
                stack.enter_context(_NoSync(model))
            random.restore(state)
            output = _call(model, with_tensors(batch, [x[cut] for x in inputs]))
            gradients = [x.grad for x in leaves]
            _backward_chunk(tensors_in(output), gradients, cut, is_last=cut is cuts[-1])
    random.restore(after)
    return value


def _backward(value: LossValue, scaler: GradScaler | None) -> LossValue:
    """Differentiate the loss and return it detached."""
    scalar = value.loss if isinstance(value, ContrastiveLossOutput) else value
    if not isinstance(scalar, Tensor) or scalar.ndim != 0:
        got = tuple(scalar.shape) if isinstance(scalar, Tensor) else type(scalar).__name__
        raise TypeError(f"loss must return a 0-dim tensor or a ContrastiveLossOutput, got {got}")
    with no_autocast(scalar.device):
        (scalar if scaler is None else scaler.scale(scalar)).backward()  # type: ignore[no-untyped-call]
    if isinstance(value, Tensor):
        return value.detach()
    terms = {name: term._replace(loss=term.loss.detach()) for name, term in value.terms.items()}
    return value._replace(loss=value.loss.detach(), terms=terms)


def _backward_chunk(
    outputs: list[Tensor], gradients: list[Tensor | None], cut: slice, *, is_last: bool
) -> None:
    """Differentiate the outputs of one chunk, given the gradients of all rows.

    An output without rows is differentiated once, in the last chunk.
    """
    pairs = [
        (output, gradient[cut] if output.ndim else gradient)
        for output, gradient in zip(outputs, gradients, strict=True)
        if output.requires_grad and gradient is not None and (output.ndim or is_last)
    ]
    if pairs:
        with no_autocast(pairs[0][0].device):
            torch.autograd.backward([x for x, _ in pairs], [x for _, x in pairs])


class _NoSync(ExitStack):
    """Keep the data-parallel modules in the model from communicating."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for module in _outermost(model):
            self.enter_context(module.no_sync())  # type: ignore[operator]


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    if hasattr(module, "no_sync"):
        yield module
        return
    for child in module.children():
        yield from _outermost(child)


def _checked_chunk(chunk: int) -> int:
    if isinstance(chunk, bool) or not isinstance(chunk, Integral):  # NumPy's integers are
        raise TypeError(f"chunk must be an int, got {type(chunk).__name__}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    return int(chunk)


def _check_static_graph(model: nn.Module) -> None:
    if any(getattr(module, "static_graph", False) for module in _outermost(model)):
        raise RuntimeError(
            "model must be a DistributedDataParallel without static_graph=True, which cannot leave "
            "out the communication of a chunk, got one with it"
        )


def _check_batch_norm(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                "model must be without batch statistics, which chunks and the whole batch do not "
                f"share, got {type(module).__name__} {name!r} in training mode: call its eval() or "
                "use GroupNorm (SyncBatchNorm does not help)"
            )


def _batch_tensors(batch: Any) -> list[Tensor]:
    """Return the tensors of a tensor, tuple or dict."""
    parts = batch.values() if isinstance(batch, Mapping) else batch
    parts = [parts] if isinstance(parts, Tensor) else parts
    kind = type(batch).__name__
    if isinstance(batch, (Tensor, tuple, list, Mapping)):
        parts = list(parts)
        if parts and all(isinstance(x, Tensor) for x in parts):
            return parts
        kind += f" of {', '.join(sorted({type(x).__name__ for x in parts})) or 'nothing'}"
    raise TypeError(f"batch must be a tensor, or a tuple or dict of tensors, got {kind}")


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return model(batch)
    return model(**batch) if isinstance(batch, Mapping) else model(*batch)


def _num_rows(inputs: list[Tensor]) -> int:
    shapes = [tuple(x.shape) for x in inputs]
    if any(shape[:1] != shapes[0][:1] for shape in shapes) or not shapes[0]:
        raise ValueError(f"batch must have tensors of the same number of rows, got {shapes}")
    return int(shapes[0][0])


def _outputs(output: Any, *, num_rows: int) -> list[Tensor]:
    """Return the tensors of what the model returned for a chunk."""
    tensors = tensors_in(output)
    if not tensors:
        kind = type(output).__name__
        raise TypeError(f"model must return a tensor, or a structure of tensors, got {kind}")
    for x in tensors:
        if x.ndim > 0 and x.shape[0] != num_rows:
            raise ValueError(
                f"model must return a row for every row of the batch, got {tuple(x.shape)} "
                f"for {num_rows} rows"
            )
    return tensors


def _column(pieces: Sequence[Tensor]) -> Tensor:
    """Return one output of all chunks: their rows, or what they must have in common."""
    first = pieces[0].detach()
    if first.ndim > 0:
        return torch.cat([x.detach() for x in pieces])
    others = torch.stack(list(pieces))
    is_equal = ((others == first) | (others.isnan() & first.isnan())).all()
    if not is_host(first.device):  # a NaN in the loss, as reading would wait
        return torch.where(is_equal, first, math.nan) if first.is_floating_point() else first
    if not is_equal:
        raise ValueError(
            "model must return 0-dim tensors that do not depend on the rows, got "
            f"{sorted(set(others.tolist()))} from the chunks"
        )
    return first.clone()
