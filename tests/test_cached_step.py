"""`cached_step` against the plain step: gradients, random state, buffers, autocast, and memory."""

from __future__ import annotations

import copy
import importlib
import multiprocessing
import os
import subprocess
import sys
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from spcl_fast import (
    ContrastiveLossOutput,
    InfoNCELoss,
    NTXentLoss,
    SelfPacedContrastiveLoss,
    SupConLoss,
)
from spcl_fast.cached_step import cached_step
from spcl_fast.nested import tensors_in, with_tensors
from spcl_fast.testing import make_labels

N, IN, OUT = 13, 5, 4


class Encoder(nn.Module):
    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(
            nn.Linear(IN, 16), nn.GroupNorm(4, 16), nn.Dropout(dropout), nn.ReLU()
        )
        self.out = nn.Linear(16, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return normalize(self.out(self.layers(x)), dim=1)


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Encoder(), Encoder()

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(a), self.right(b)


def scalar(value: Any) -> Tensor:
    return value.loss if isinstance(value, ContrastiveLossOutput) else value


def plain_step(
    model: nn.Module, batch: tuple[Tensor, ...], loss: Callable[[Any], Any], chunk: int
) -> Any:
    """All graphs at once; dropout draws its numbers chunk by chunk."""
    outputs = [model(*x) for x in zip(*(x.split(chunk) for x in batch), strict=True)]
    if isinstance(outputs[0], tuple):
        z: Any = tuple(torch.cat(x) for x in zip(*outputs, strict=True))
    else:
        z = torch.cat(outputs)
    value = loss(z)
    scalar(value).backward()
    return value


def images(count: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(N, IN, generator=generator, dtype=dtype) for _ in range(count))


def gradients(*modules: nn.Module) -> list[Tensor | None]:
    return [x.grad for module in modules for x in module.parameters()]


LABELS = make_labels(N, 3)


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


def test_a_batch_in_one_chunk_runs_once() -> None:
    model = CountingEncoder()
    cached_step(model, images()[0], lambda z: SupConLoss()(z, LABELS), chunk=N)
    assert model.calls == 1


def test_inputs_that_require_a_gradient() -> None:
    (x,), model = images(), Encoder(0.0)
    grads = []
    for step in (plain_step, cached_step):
        leaf = x.clone().requires_grad_()
        given: Any = (leaf,)
        step(model, given, partial(SupConLoss(), labels=LABELS), chunk=5)  # type: ignore[operator]
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(OUT), nn.SyncBatchNorm(OUT)])
def test_batch_norm_raises(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(IN, OUT), nn.Sequential(norm))
    call = partial(cached_step, model, images()[0], lambda z: z.sum())
    with pytest.raises(ValueError, match=r"got \w*BatchNorm\w* '1.0' in training mode: call its"):
        call(chunk=5)
    assert model[0].weight.grad is None
    model.eval()
    call(chunk=5)
    assert model[0].weight.grad is not None
    without = nn.Sequential(nn.Linear(IN, OUT), nn.BatchNorm1d(OUT, track_running_stats=False))
    with pytest.raises(ValueError, match="batch statistics"):
        cached_step(without.eval(), images()[0], lambda z: z.sum(), chunk=5)


def test_raises() -> None:
    model, (x,) = nn.Linear(IN, OUT), images()
    for bad, error, message in (
        (0, ValueError, "chunk must be at least 1, got 0"),
        (2.0, TypeError, "chunk must be an int, got float"),
        (True, TypeError, "chunk must be an int, got bool"),
    ):
        with pytest.raises(error, match=message):
            cached_step(model, x, torch.sum, chunk=bad)  # type: ignore[arg-type]
    for batch, got in (("x", "str"), ((x, 3), "tuple of Tensor, int"), ({}, "dict of nothing")):
        with pytest.raises(TypeError, match=f"batch must be a tensor, or .* got {got}"):
            cached_step(model, batch, torch.sum, chunk=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"batch must have tensors of the same number of rows"):
        cached_step(model, (x, x[1:]), torch.sum, chunk=4)
    with pytest.raises(ValueError, match=r"batch must have tensors of the same number of rows"):
        cached_step(model, torch.ones(()), torch.sum, chunk=4)
    for views, message in (
        (lambda z: z.sum(0), r"model must return a row for every row of the batch, got \(4,\) for"),
        (lambda z: torch.cat([z, z]), r"model must return a row for .* got \(8, 4\) for 4 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            cached_step(Lambda(views), x[:, :4], torch.sum, chunk=4)
    with pytest.raises(TypeError, match=r"model must return a tensor, or .* got NoneType"):
        cached_step(Lambda(lambda _: None), x, torch.sum, chunk=4)
    for result, got in ((torch.ones(2), r"\(2,\)"), (3.0, "float")):
        with pytest.raises(TypeError, match=f"loss must return a 0-dim tensor or .* got {got}"):
            cached_step(model, x, lambda _, r=result: r, chunk=4)  # type: ignore[misc]
    with torch.no_grad(), pytest.raises(RuntimeError, match="cached_step must be called with grad"):
        cached_step(model, x, torch.sum, chunk=4)


class Named(NamedTuple):
    z: Tensor
    scale: Tensor


@dataclass(frozen=True)
class Data:
    z: Tensor
    scale: Tensor
    name: str = "data"


# Types that are kept, with a scale beside the rows; a subclass of dict, a nested one.
STRUCTURES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda z, s: (z, s),
    "list": lambda z, s: [z, s],
    "named": Named,
    "dict": lambda z, s: {"z": z, "scale": s},
    "ordered": lambda z, s: OrderedDict(z=z, scale=s),
    "default": lambda z, s: defaultdict(list, z=z, scale=s),
    "dataclass": Data,
    "nested": lambda z, s: {"a": [z, {"b": (s, None, 3)}]},
}


class Scaled(nn.Module):
    def __init__(self, make: Callable[[Tensor, Tensor], Any], *, is_plain: bool) -> None:
        super().__init__()
        self.projector, self.make, self.is_plain = nn.Linear(IN, OUT), make, is_plain
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Any:
        scale = self.scale if self.is_plain else self.scale.exp()
        return self.make(normalize(self.projector(x), dim=1), scale)


@pytest.mark.parametrize("name", list(STRUCTURES))
@pytest.mark.parametrize("is_plain", [False, True])  # the parameter itself
def test_structures_and_scales(name: str, is_plain: bool) -> None:
    model = Scaled(STRUCTURES[name], is_plain=is_plain)
    (x,), results = images(), []
    plain = model(x)

    def loss(output: Any) -> Tensor:
        assert type(output) is type(plain)
        z, scale = tensors_in(output)
        assert repr(with_tensors(output, [x, x])) == repr(with_tensors(plain, [x, x]))
        return SupConLoss(1.0)(z * scale, LABELS).loss

    for chunk in (N, 5, 1):
        model.zero_grad()
        value = cached_step(model, x, loss, chunk=chunk)
        results.append((value, gradients(model)))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


def test_a_scale_that_depends_on_the_rows() -> None:
    model = Lambda(lambda z: (z, z.mean()))
    leaf = images()[0].requires_grad_()
    with pytest.raises(ValueError, match="model must return 0-dim tensors that do not depend on"):
        cached_step(model, leaf, lambda out: out[0].sum() * out[1], chunk=5)


def test_a_scale_on_a_device_becomes_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("spcl_fast.cached_step")
    monkeypatch.setattr(module, "is_host", lambda _device: False)
    leaf = images()[0].requires_grad_()
    for scale, is_nan in ((lambda z: z.mean(), True), (lambda _: torch.tensor(2.0), False)):
        model = Lambda(lambda z, f=scale: (z, f(z)))
        value = cached_step(model, leaf, lambda out: out[0].sum() * out[1], chunk=5)
        assert value.isnan().item() is is_nan


def test_chunks_of_numpy() -> None:
    model, (x,) = nn.Linear(IN, OUT), images()
    values = [cached_step(model, x, torch.sum, chunk=c) for c in (np.int64(5), 5)]
    assert values[0] == values[1]
    for bad in (np.float64(5), np.bool_(True), torch.tensor(5), "5"):
        with pytest.raises(TypeError, match="chunk must be an int, got"):
            cached_step(model, x, torch.sum, chunk=bad)  # type: ignore[arg-type]


def test_a_static_graph_is_refused() -> None:
    class Static(Encoder):
        static_graph = True

        def no_sync(self) -> Any:
            return nullcontext()

    for chunk in (5, N):
        with pytest.raises(RuntimeError, match="without static_graph=True"):
            cached_step(nn.Sequential(Static()), images()[0], torch.sum, chunk=chunk)


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def rank_step(rank: int, folder: Path) -> None:
    """Step on half a batch, in chunks whose number differs between the ranks."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    torch.set_num_threads(1)
    model = DistributedDataParallel(Encoder(0.0))
    loss = DistributedDataParallel(SupConLoss(0.2, learnable_tau=True))
    reduced: list[int] = []

    def hook(_, bucket):  # type: ignore[no-untyped-def]
        reduced.append(1)
        future = torch.distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
        return future.then(lambda f: f.value()[0] / 2)

    model.register_comm_hook(None, hook)
    rows = RANKS[rank]
    for chunk in (3, 6):  # 3 and 2 chunks, then 2 and 1
        reduced.clear()
        model.zero_grad()
        loss.zero_grad()
        cached_step(model, images()[0][rows], lambda z: loss(z, LABELS[rows]), chunk=chunk)
        assert len(reduced) == 1, reduced
        torch.save(gradients(model.module, loss.module), folder / f"{rank} {chunk}")
    torch.distributed.destroy_process_group()


RANKS = (slice(0, 7), slice(7, N))


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    if not torch.distributed.is_gloo_available():
        pytest.skip("needs gloo")
    # this file as a program, which forks the ranks
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, str(tmp_path)]
    subprocess.run(command, env=environment, check=True, timeout=120)
    model, loss = Encoder(0.0), SupConLoss(0.2, learnable_tau=True)
    for rows in RANKS:
        (loss(model(images()[0][rows]), LABELS[rows]).loss / 2).backward()
    expected = gradients(model, loss)
    for path in tmp_path.glob("[01] *"):
        torch.testing.assert_close(torch.load(path), expected)
    assert len(list(tmp_path.glob("[01] *"))) == 4


def test_no_sync_reaches_the_towers() -> None:
    entered = []

    class Wrapped(Encoder):
        def no_sync(self) -> Any:
            entered.append(self)
            return nullcontext()

    model = Towers()
    model.left, model.right = Wrapped(), Wrapped()
    cached_step(model, images(2), lambda z: InfoNCELoss()(*z), chunk=5)
    assert len(entered) == 2 * (1 + 2)  # without a graph, and all chunks but the last


if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=rank_step, args=(rank, Path(sys.argv[1])), daemon=True)
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in processes))
