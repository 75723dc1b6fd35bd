"""Launches that are repeated do the same to other tensors, and nothing else is repeated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from spcl_fast import InfoNCELoss, SelfPacedContrastiveLoss
from spcl_fast.kernels import _bound, _class_sums, _replay, contrastive_terms, infonce_terms
from spcl_fast.kernels._replay import replayed
from spcl_fast.kernels._tape import Results
from spcl_fast.kernels.hopper import _choice
from spcl_fast.operands import Kept
from spcl_fast.testing import make_embeddings, make_labels

N = 6

needs_launches = pytest.mark.skipif(
    _replay.IS_INTERPRETED, reason="the interpreter has no launches to note"
)


@pytest.fixture(autouse=True)
def _replays(monkeypatch: pytest.MonkeyPatch, is_emulated: bool) -> None:
    monkeypatch.setattr(_replay, "IS_INTERPRETED", False)
    if is_emulated:  # its launches use operators, which are not those of a step
        from gpucheck import emu_driver

        launch = emu_driver.Launcher.__call__

        def hidden(*args: Any) -> None:
            with _disable_current_modes():
                launch(*args)

        monkeypatch.setattr(emu_driver.Launcher, "__call__", hidden)


class Descriptor:
    """Stands for what describes x to the tensor memory accelerator."""

    def __init__(self, x: Tensor) -> None:
        self.base, self.block_shape = x, [1]


def launch(*args: Any) -> None:
    """Launch what stands for a compiled kernel: out = factor times x, of N floats."""

    def launcher(x: Tensor | Descriptor, factor: float, out: Tensor) -> None:
        x = x.base if isinstance(x, Descriptor) else x
        with _disable_current_modes():
            x, out = (y.view(torch.uint8).view(torch.float32).flatten()[:N] for y in (x, out))
            out.copy_(factor * x)

    launcher(*args)
    if _bound._notes.launches is not None:
        _bound._notes.launches.append((launcher, args))


class Scaled:
    """A function of two tensors that counts how often it runs."""

    kept: Kept

    def __init__(self, *, uses_operator: bool = False) -> None:
        self.runs = 0
        self.uses_operator = uses_operator

    def __call__(self, x: Tensor, y: Tensor, factor: float = 2.0, key: Any = ()) -> list[Tensor]:
        """Return factor x, and 3 y by way of two views of a tensor that is not returned.

        Keeps 5 x and, behind nothing, 7 y.
        """

        def run(numbers: Sequence[float]) -> tuple[Results, Results]:
            self.runs += 1
            out, third = torch.empty(N), torch.empty(N)
            between = torch.empty(2, N)
            kept = torch.empty(N), None, torch.empty(2, N // 2)
            launch(x, numbers[0], out)
            launch(Descriptor(y), 1.5, between[1])
            launch(between[1], 2.0, third)
            launch(x, 5.0, kept[0])
            launch(y, 7.0, kept[2])
            if self.uses_operator:
                third = third + 0
            return (out, x, None, third), kept

        results, self.kept = replayed((self, key), [x, y], (), [factor], run)
        first, same, nothing, third = results
        assert same is x
        assert nothing is None
        assert first is not None
        assert third is not None
        return [first, third]


def check(scaled: Scaled, x: Tensor, y: Tensor, factor: float = 2.0) -> None:
    first, third = scaled(x, y, factor)
    torch.testing.assert_close(first, factor * x)
    torch.testing.assert_close(third, 3 * y)
    of_x, nothing, of_y = scaled.kept.tensors()
    torch.testing.assert_close(of_x, 5 * x)
    assert nothing is None
    torch.testing.assert_close(of_y, 7 * y.view(2, N // 2))


def test_other_tensors_and_numbers() -> None:
    scaled = Scaled()
    kept = [scaled(torch.ones(N), torch.ones(N))]
    for k in range(3):
        check(scaled, torch.randn(N), torch.randn(N), 0.5 + k)
        kept.append(scaled(torch.full((N,), float(k)), torch.ones(N)))
    assert scaled.runs == 1
    assert [first[0].item() for first, _ in kept] == [2, 0, 2, 4]  # nothing was overwritten


def test_what_is_kept_is_one_memory_from_the_first_call_on() -> None:
    scaled = Scaled()
    for _ in range(3):
        check(scaled, torch.randn(N), torch.randn(N))
        assert len(scaled.kept.memory) == 1
        assert scaled.kept.pieces is not None
    alone = Scaled(uses_operator=True)
    for _ in range(2):
        check(alone, torch.randn(N), torch.randn(N))
        assert len(alone.kept.memory) == 3


def test_results_that_are_parts_of_another() -> None:
    runs, key = [], (object(),)
    for k in range(3):
        x = torch.full((N,), 1.0 + k)

        def run(_: Sequence[float], x: Tensor = x) -> tuple[Results, Results]:
            runs.append(1)
            both = torch.empty(2, N)
            launch(x, 2.0, both[0])
            launch(x, 3.0, both[1])
            return (both[1], both, both[0, 2]), ()

        (third, both, element), _ = replayed(key, [x], (), [], run)
        assert third is not None
        assert both is not None
        assert element is not None
        assert torch.equal(both, torch.stack([2 * x, 3 * x]))
        assert third.data_ptr() == both[1].data_ptr()
        assert torch.equal(third, 3 * x)
        assert element.shape == ()
        assert element.item() == 2 * (1 + k)
    assert len(runs) == 1


def test_other_results_of_before_run_again() -> None:
    runs = []

    def run(_: Sequence[float]) -> tuple[Results, Results]:
        runs.append(1)
        return (torch.empty(N),), ()

    x, key = torch.randn(N), (object(),)
    for size in (N, N, 2 * N, N):  # as the planes of another precision
        replayed(key, [x], [torch.empty(size)], [], run)
    assert len(runs) == 2


# The precision of float32 products may be another one when the backward runs.
@needs_launches
def test_a_backward_at_another_precision(device: str) -> None:
    loss = SelfPacedContrastiveLoss(0.1, impl="triton")
    y = make_labels(43, 5, device=device)
    gradients = []
    for backward in ("highest", "high", "high", "highest"):
        z = make_embeddings(43, 24, device=device).requires_grad_()
        torch.set_float32_matmul_precision("high" if len(gradients) == 1 else "highest")
        out = loss(z, y, 6.0).loss
        torch.set_float32_matmul_precision(backward)
        out.backward()
        gradients.append(z.grad)
    assert torch.equal(gradients[2], gradients[0])
    assert torch.equal(gradients[3], gradients[0])


def test_one_tensor_for_two() -> None:
    scaled, x = Scaled(), torch.randn(N)
    check(scaled, x, x)
    check(scaled, x, torch.randn(N))
    assert scaled.runs == 2
    check(scaled, torch.randn(N), torch.randn(N))
    check(scaled, x, x)
    assert scaled.runs == 2


def test_an_operator_is_not_left_out() -> None:
    scaled = Scaled(uses_operator=True)
    for _ in range(3):
        check(scaled, torch.randn(N), torch.randn(N))
    assert scaled.runs == 3


@pytest.mark.parametrize(
    "other",
    [
        lambda: (torch.randn(N + 1)[1:], torch.randn(N), ()),  # aligned to 4 bytes
        lambda: (torch.randn(2, N)[0], torch.randn(1, N), ()),
        lambda: (torch.randn(N).double(), torch.randn(N), ()),
        lambda: (torch.randn(N), torch.randn(N), ("another",)),
    ],
)
def test_what_differs_runs_again(other: Callable[[], tuple[Tensor, Tensor, Any]]) -> None:
    scaled = Scaled()
    scaled(torch.randn(N), torch.randn(N))
    x, y, key = other()
    scaled(x, y, key=key)
    assert scaled.runs == 2


def test_what_no_launcher_is_known_of_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    scaled = Scaled()
    monkeypatch.setattr(_replay, "_can_be_repeated", lambda _noted: False)
    for _ in range(2):
        check(scaled, torch.randn(N), torch.randn(N))
    assert scaled.runs == 2


# Whole losses: the interpreter has no launches to note.
def gradients(loss: Any, z: Tensor, *args: Any) -> list[Tensor]:
    """Return the loss, lse and the gradient of z, from a step with a given upstream gradient."""
    z = z.detach().requires_grad_()
    out = loss(z, *args)
    (0.5 * out.loss).backward()
    assert z.grad is not None
    return [out.loss.detach(), out.lse, out.mean_weight, z.grad]


def check_repeated(
    loss: Any, first: tuple[Any, ...], second: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare a step that repeats the launches of one before with what it is by itself."""
    gradients(loss, *first)
    with monkeypatch.context() as patch:
        for module in (contrastive_terms, infonce_terms):
            patch.setattr(module, "_forward", None)
            patch.setattr(module, "_backward", None)
        repeated = gradients(loss, *second)
    _replay._tapes.clear()
    for value, alone in zip(repeated, gradients(loss, *second), strict=True):
        assert torch.equal(value, alone)


@needs_launches
@pytest.mark.parametrize(
    ("gamma", "dim", "dtype"),
    [
        (6.0, 24, torch.float32),
        (6.0, 64, torch.bfloat16),  # with descriptors on an H100
        pytest.param(math.inf, 24, torch.float32, marks=pytest.mark.breadth),
    ],
)
def test_a_step_of_a_loss(
    gamma: float, dim: int, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = SelfPacedContrastiveLoss(0.1, impl="triton")
    first, second = (
        (
            make_embeddings(43, dim, dtype=dtype, seed=k, device=device),
            make_labels(43, 5, seed=k, device=device),
            gamma + k,
        )
        for k in range(2)
    )
    if dtype == torch.bfloat16:
        monkeypatch.setattr(_choice, "MIN_PAIRS", 0)
    check_repeated(loss, first, second, monkeypatch)


# Sums of blocks of 128 columns are kept too: those of the labels given now.
@needs_launches
def test_a_step_with_a_big_class(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_class_sums, "_FEW", 0)
    loss, labels = SelfPacedContrastiveLoss(0.1, impl="triton"), torch.arange(150) // 140
    first, second = (
        (make_embeddings(150, 24, dtype=torch.bfloat16, seed=k, device=device), y.to(device))
        for k, y in enumerate([labels, labels.flip(0)])
    )
    check_repeated(loss, first, second, monkeypatch)


@needs_launches
def test_a_step_of_infonce(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = InfoNCELoss(0.1, impl="triton")
    first, second = (make_embeddings(66, 24, seed=k, device=device) for k in range(2))
    check_repeated(lambda z: loss(z[:33], z[33:]), (first,), (second,), monkeypatch)
