"""Every loss in a training step: temperature, autocast, compile, export, checkpoint, transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from spcl_fast import InfoNCELoss, NTXentLoss, SelfPacedContrastiveLoss, SupConLoss, native
from spcl_fast.losses._temperature import Temperature
from spcl_fast.testing import make_embeddings, make_labels

N, IN, D = 24, 6, 8
LABELS, OTHERS = make_labels(N, 4), make_labels(N, 3, seed=1, unknown_share=0.2)

# What the arguments of each loss are, of rows z and as many labels.
ARGUMENTS: dict[type[nn.Module], Callable[[Tensor, Tensor, Tensor], tuple[Any, ...]]] = {
    SelfPacedContrastiveLoss: lambda z, a, b: (z, {"a": a, "b": b}, {"a": 4.0, "b": 6.0}),
    SupConLoss: lambda z, a, _: (z, a),
    NTXentLoss: lambda z, *_: (z[::2], z[1::2]),
    InfoNCELoss: lambda z, *_: (z[::2], z[1::2]),
}
LOSSES = list(ARGUMENTS)
# triton: tests/kernels
IMPLS = ["reference", "chunked", *(["native"] if native.is_built() else [])]
each_loss = pytest.mark.parametrize("kind", LOSSES)
each_impl = pytest.mark.parametrize("impl", IMPLS)


class Step(nn.Module):
    """An encoder and its loss."""

    def __init__(self, kind: Any, impl: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(IN, 16), nn.Tanh(), nn.Linear(16, D))
        self.loss = kind(0.2, learnable_tau=True, impl=impl)

    def forward(self, x: Tensor, a: Tensor = LABELS, b: Tensor = OTHERS) -> Tensor:
        z = normalize(self.encoder(x), dim=1)
        loss: Tensor = self.loss(*ARGUMENTS[type(self.loss)](z, a, b)).loss
        return loss

    @property
    def tau(self) -> float:
        (temperature,) = (m for m in self.loss.modules() if isinstance(m, Temperature))
        return float(temperature().detach())


def images(num_rows: int = N) -> Tensor:
    return torch.randn(num_rows, IN, generator=torch.Generator().manual_seed(1))


def gradients(step: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(step.parameters())))


@each_loss
@each_impl
def test_temperature_moves_and_stays_positive(kind: Any, impl: str) -> None:
    step, x = Step(kind, impl), images()
    # a step size at which tau itself, rather than its logarithm, would fall below 0
    optimizer = torch.optim.SGD(step.parameters(), lr=2.0)
    taus = [step.tau]
    for _ in range(20):
        loss = step(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        taus.append(step.tau)
    assert min(taus) > 0
    assert len(set(taus)) == len(taus)


# bfloat16 needs no scaler; float16 does, and one that starts too high skips a step.
@each_loss
@each_impl
@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, None), (torch.float16, 2.0**40)])
def test_autocast(kind: Any, impl: str, dtype: torch.dtype, scale: float | None) -> None:
    step, x = Step(kind, impl), images()
    exact = step(x)
    expected = gradients(step, exact)
    optimizer = torch.optim.SGD(step.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=scale or 1.0, enabled=scale is not None, backoff_factor=2.0**-30
    )
    before = [x.clone() for x in step.parameters()]
    for skipped in (True, False) if scale else (False,):
        with torch.autocast("cpu", dtype):
            loss = step(x)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        found = [x.grad for x in step.parameters()]
        scaler.step(optimizer)
        scaler.update()
        moved = [not torch.equal(x, y) for x, y in zip(before, step.parameters(), strict=True)]
        assert moved == [not skipped] * len(moved)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=20 * torch.finfo(dtype).eps)
    for actual, truth in zip(found, expected, strict=True):
        assert actual is not None
        assert (actual - truth).abs().max() < 20 * torch.finfo(dtype).eps * truth.abs().max()


# One loss of each op, and each of what auto may be on a CPU once: a compilation takes seconds.
@pytest.mark.parametrize(
    ("kind", "impl"),
    [
        (SelfPacedContrastiveLoss, "auto"),
        pytest.param(InfoNCELoss, "chunked", marks=pytest.mark.slow),
    ],
)
def test_compiled_step(kind: Any, impl: str) -> None:
    step = Step(kind, impl)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for num_rows in (N, 38, 10):
        x, a, b = images(num_rows), make_labels(num_rows, 4), make_labels(num_rows, 3)
        expected, actual = step(x, a, b), compiled(x, a, b)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(gradients(step, actual), gradients(step, expected))
        counts.append(counter.frame_count)
    # the compiler starts once more where a number becomes a symbol, but not for other sizes
    assert counts[0] <= 2
    assert counts == counts[:1] * 3


@each_loss
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_export(kind: Any, strict: bool) -> None:
    loss = kind(0.2, learnable_tau=True)
    z = make_embeddings(N, D)
    arguments = ARGUMENTS[kind](z, LABELS, OTHERS)
    exported = torch.export.export(loss, arguments, strict=strict).module()
    torch.testing.assert_close(exported(*arguments), loss(*arguments))


@each_loss
@each_impl
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpoints(kind: Any, impl: str, use_reentrant: bool) -> None:
    step, x = Step(kind, impl), images().requires_grad_()
    expected, actual = step(x), checkpoint(step, x, use_reentrant=use_reentrant)
    expected.backward()
    truth = [p.grad for p in step.parameters()]
    step.zero_grad()
    actual.backward()
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close([p.grad for p in step.parameters()], truth)


@each_loss
@each_impl
def test_func_grad(kind: Any, impl: str) -> None:
    step, x = Step(kind, impl), images()
    parameters = dict(step.named_parameters())
    expected = dict(zip(parameters, gradients(step, step(x)), strict=True))
    actual = torch.func.grad(lambda p: torch.func.functional_call(step, p, (x,)))(parameters)
    torch.testing.assert_close(actual, expected)


@each_loss
@each_impl
def test_vmap_and_jacrev(kind: Any, impl: str) -> None:
    step, x = Step(kind, impl), images()
    for run in (torch.func.vmap(step), lambda x: torch.func.jacrev(step)(x[0])):
        if impl == "reference":
            run(torch.stack([x, x]))
        else:
            with pytest.raises(RuntimeError, match='vmap needs impl="reference"'):
                run(torch.stack([x, x]))


def gradient_penalty(step: Step, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(step(x), x, create_graph=True)
    return gradient.square().sum()


# the weights of a self-paced loss are constants of its gradient, not of differences of it
@pytest.mark.parametrize("kind", LOSSES[1:])
def test_second_derivative_of_the_reference(kind: Any) -> None:
    step, x = Step(kind, "reference").double(), images().double()
    (log_tau,) = step.loss.parameters()
    actual = gradients(step, gradient_penalty(step, x))[-1].item()
    h, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            log_tau += sign * h
        values.append(gradient_penalty(step, x).item())
        with torch.no_grad():
            log_tau -= sign * h
    assert actual == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)


@each_loss
@pytest.mark.parametrize("impl", IMPLS[1:])
def test_second_derivative_raises_elsewhere(kind: Any, impl: str) -> None:
    step, x = Step(kind, impl), images()
    message = 'a second derivative needs impl="reference"'
    with pytest.raises(RuntimeError, match=message):
        gradient_penalty(step, x).backward()
    with pytest.raises(RuntimeError, match=message):
        torch.func.grad(lambda x: torch.func.grad(step)(x).square().sum())(x)
    # of tau alone, whose gradient does not depend on rows that require one
    (log_tau,) = step.loss.parameters()
    step.encoder.requires_grad_(False)
    (dtau,) = torch.autograd.grad(step(x), log_tau, create_graph=True)
    with pytest.raises(RuntimeError, match=message):
        dtau.backward()
