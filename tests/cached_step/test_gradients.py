"""`cached_step` against the plain step: gradients, random state, buffers, autocast, and memory."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from step_models import LABELS, OUT, Encoder, N, Towers, gradients, images, plain_step, scalar
from torch import Tensor, nn
from torch.nn.functional import normalize

from spcl_fast import (
    ContrastiveLossOutput,
    InfoNCELoss,
    NTXentLoss,
    SelfPacedContrastiveLoss,
    SupConLoss,
)
from spcl_fast.cached_step import cached_step
from spcl_fast.testing import make_labels


def losses() -> dict[str, tuple[nn.Module, int, Callable[[nn.Module], Callable[[Any], Any]]]]:
    """Return a module, how many towers feed it, and how its arguments follow from embeddings."""
    named = {"a": LABELS, "b": make_labels(N, 2, seed=1)}
    return {
        "self_paced": (
            SelfPacedContrastiveLoss(learnable_tau=True),
            1,
            lambda m: lambda z: m(z, named, {"a": 4.0, "b": 6.0}),
        ),
        "supcon": (SupConLoss(learnable_tau=True), 1, lambda m: lambda z: m(z, LABELS)),
        "ntxent": (NTXentLoss(learnable_tau=True), 2, lambda m: lambda z: m(*z)),
        "infonce": (InfoNCELoss(learnable_tau=True), 2, lambda m: lambda z: m(*z)),
        "tensor": (nn.Linear(OUT, 1), 1, lambda m: lambda z: m(z).exp().prod()),
    }


# Chunks that divide N and that do not, of one row, of N and beyond it.
@pytest.mark.parametrize("chunk", [1, 5, N - 1, N, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(losses()))
def test_equals_the_plain_step(name: str, dtype: torch.dtype, chunk: int) -> None:
    results = []
    for step in (plain_step, cached_step):
        module, count, call = losses()[name]
        torch.manual_seed(2)
        module = copy.deepcopy(module)
        for x in module.parameters():
            if x.ndim:
                nn.init.normal_(x)
        module = module.to(dtype)
        model = (Encoder() if count == 1 else Towers()).to(dtype)
        batch = images(count, dtype)
        torch.manual_seed(3)
        for _ in range(2):  # gradients accumulate
            given: Any = batch[0] if step is cached_step and count == 1 else batch
            value = step(model, given, call(module), chunk=chunk)  # type: ignore[operator]
        results.append((scalar(value).detach(), gradients(model, module), torch.rand(3)))
        if step is cached_step:
            assert not scalar(value).requires_grad
            assert not any(term.loss.requires_grad for term in getattr(value, "terms", {}).values())
    (loss, grads, after), (expected, expected_grads, expected_after) = results[1], results[0]
    close = (
        {"rtol": 1e-12, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}
    )
    torch.testing.assert_close(loss, expected, **close)
    torch.testing.assert_close(grads, expected_grads, **close)
    assert torch.equal(after, expected_after)


def test_takes_a_dict_and_gives_what_the_model_gives() -> None:
    class Named(Towers):
        def forward(self, a: Tensor, b: Tensor) -> Any:
            return {"x": self.left(a), "y": self.right(b).detach(), "index": torch.arange(len(a))}

    a, b = images(2)
    model, other = Named(), Named()
    other.load_state_dict(model.state_dict())
    torch.manual_seed(3)
    z = [model(x, y) for x, y in zip(a.split(5), b.split(5), strict=True)]
    InfoNCELoss()(*(torch.cat([part[k] for part in z]) for k in "xy")).loss.backward()
    torch.manual_seed(3)
    seen: list[Tensor] = []

    def loss(z: dict[str, Tensor]) -> ContrastiveLossOutput:
        seen.append(z["index"])
        out: ContrastiveLossOutput = InfoNCELoss()(z["x"], z["y"])
        return out

    cached_step(other, {"b": b, "a": a}, loss, chunk=5)
    assert seen[0].tolist() == [*range(5), *range(5), *range(3)]
    torch.testing.assert_close(gradients(other), gradients(model))
    assert other.right.out.weight.grad is None  # detached


# bfloat16 with and without a scaler, float16 as it is used: the casts of weights are cached.
@pytest.mark.parametrize("scale", [None, 2.0**10])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_scaler(dtype: torch.dtype, scale: float | None) -> None:
    loss = SupConLoss(0.2, learnable_tau=True)
    results = []
    for cached in (False, True):
        model, module = Encoder(), copy.deepcopy(loss)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        optimizer = torch.optim.SGD([*model.parameters(), *module.parameters()], lr=0.1)
        (x,) = images()
        call = lambda z, module=module: module(z, LABELS)  # noqa: E731
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype):
            if cached:
                out = cached_step(model, x, call, chunk=5, scaler=scaler)
            else:
                out = call(torch.cat([model(part) for part in x.split(5)]))
        if not cached:
            scaler.scale(out.loss).backward()
        scaler.unscale_(optimizer)
        results.append((out.loss.detach(), gradients(model, module)))
        before = copy.deepcopy(model.state_dict())
        scaler.step(optimizer)
        scaler.update()
        assert all(not torch.equal(x, before[name]) for name, x in model.state_dict().items())
    # of a sum over chunks, every term is rounded to half precision
    (loss0, plain), (loss1, mine) = results
    assert loss0 == loss1
    for x, y in zip(plain, mine, strict=True):
        assert x is not None
        assert y is not None
        assert (x - y).abs().max() <= 2 * torch.finfo(dtype).eps * x.abs().max()


class CountingEncoder(Encoder):
    """Buffers of three kinds: changed in place, replaced, and constant; the output needs them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(OUT))
        self.register_buffer("constant", torch.ones(OUT))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        z = super().forward(x) * (1 + self.mean) * self.constant * self.calls.clone()
        self.mean = 0.9 * self.mean + 0.1 * z.detach().mean(0)
        return z


def test_buffers_change_once() -> None:
    model, other = CountingEncoder(), CountingEncoder()
    loss = partial(SupConLoss(), labels=LABELS)
    torch.manual_seed(3)
    plain_step(model, images(), loss, 5)
    calls = other.calls
    torch.manual_seed(3)
    cached_step(other, images()[0], loss, chunk=5)
    assert other.calls is calls
    assert other.calls == 3
    torch.testing.assert_close(dict(other.named_buffers()), dict(model.named_buffers()))
    torch.testing.assert_close(gradients(other), gradients(model))


def test_a_batch_in_one_chunk_runs_once() -> None:
    model = CountingEncoder()
    cached_step(model, images()[0], lambda z: SupConLoss()(z, LABELS), chunk=N)
    assert model.calls == 1


def test_a_loss_may_draw_random_numbers_and_change_its_state() -> None:
    model, other = Encoder(), Encoder()
    seen = []

    def loss(z: Tensor) -> Any:
        noise = torch.rand(())
        seen.append(noise)
        return SupConLoss()(z, LABELS).loss * noise

    after = []
    for step, m, x in ((plain_step, model, images()), (cached_step, other, images()[0])):
        torch.manual_seed(3)
        step(m, x, loss, chunk=5)  # type: ignore[operator]
        after.append(torch.rand(2))
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert torch.equal(*after)
    torch.testing.assert_close(gradients(other), gradients(model))


def test_inputs_that_require_a_gradient() -> None:
    (x,), model = images(), Encoder(0.0)
    grads = []
    for step in (plain_step, cached_step):
        leaf = x.clone().requires_grad_()
        given: Any = (leaf,)
        step(model, given, partial(SupConLoss(), labels=LABELS), chunk=5)  # type: ignore[operator]
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[1], grads[0])


def saved_bytes(run: Callable[[], object]) -> int:
    """Return the most bytes that autograd held at once, of tensors saved in `run`."""
    now = peak = 0

    class Saved:
        def __init__(self, x: Tensor) -> None:
            nonlocal now, peak
            self.x = x
            size = x.numel() * x.element_size()
            now += size
            peak = max(peak, now)
            weakref.finalize(self, release, size)

    def release(size: int) -> None:
        nonlocal now
        now -= size

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.x):
        run()
    return peak


def test_memory_is_of_one_chunk() -> None:
    model = nn.Sequential(*[nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(8)])
    x, labels = torch.randn(256, 32), make_labels(256, 8)

    def loss(z: Tensor) -> Any:
        return SupConLoss(impl="chunked")(normalize(z, dim=1), labels)

    rows = 32 * 4  # bytes of a row
    whole = saved_bytes(lambda: plain_step(model, (x,), loss, 256))
    assert whole > 256 * rows * 8
    parts = saved_bytes(lambda: cached_step(model, x, loss, chunk=16))
    # the loss on its rows, or one chunk with the weights
    assert parts < 256 * rows * 5
    assert parts < whole / 3
