"""Comparison of a replacement with its original, in value and gradients."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast.testing import similarity_rounding

LossFunction = Callable[..., Tensor]


def value_and_gradients(loss: LossFunction, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    filled = [
        torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True)
    ]
    return [value.detach(), *filled]


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """Assert equal values and gradients: in float64, and in float32 to a few of their errors.

    `scale` is the size of what cancels in a gradient, 1 / (tau |z|) for a loss of cosines.
    """

    def check(
        ours: LossFunction, theirs: LossFunction, *inputs: Tensor, scale: float = 1.0
    ) -> None:
        exact = [x.double() for x in inputs]
        truth = value_and_gradients(theirs, exact)
        doubles = value_and_gradients(ours, exact)
        actual = value_and_gradients(ours, list(inputs))
        eager = value_and_gradients(theirs, list(inputs))
        for number, t in enumerate(truth):
            size = scale + t.abs().max().item()
            assert_close(doubles[number], t, 1e-10 * size, f"float64 result {number}")
            budget = 3 * (eager[number].double() - t).abs().max().item()
            budget += 2 * similarity_rounding(size)
            assert actual[number].dtype == eager[number].dtype
            assert_close(actual[number].double(), t, budget, f"float32 result {number}")

    return check


def assert_close(actual: Tensor, truth: Tensor, budget: float, name: str) -> None:
    assert actual.shape == truth.shape
    error = (actual - truth).abs().max().item()
    assert error <= budget, f"{name}: error {error:.2e} exceeds budget {budget:.2e}"


def installed(package: str) -> Path:
    """Return the folder of a package without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"needs {package}")
    return Path(spec.submodule_search_locations[0])


def load_file(file: Path) -> Any:
    """Run one file of a package without the package around it."""
    spec = importlib.util.spec_from_file_location(f"_original_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def open_clip_loss() -> Any:
    return load_open_clip()


@pytest.fixture
def lightly_loss(monkeypatch: pytest.MonkeyPatch) -> Any:
    return load_lightly(monkeypatch)


def load_open_clip() -> Any:
    """Return the class ClipLoss of open_clip, whose package needs torchvision."""
    return load_file(installed("open_clip") / "loss.py").ClipLoss


def load_lightly(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the class NTXentLoss of lightly, whose package needs torchvision."""
    root = installed("lightly")
    for name in ("lightly", "lightly.models", "lightly.models.modules", "lightly.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        monkeypatch.setitem(sys.modules, name, package)
    utils: Any = types.ModuleType("lightly.models.utils")  # of use on several ranks only
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    monkeypatch.setattr(sys.modules["lightly.models"], "utils", utils, raising=False)
    loss = load_file(root / "loss" / "ntx_ent_loss.py").NTXentLoss
    for name in ("lightly.models.modules.memory_bank", "lightly.utils.dist"):
        sys.modules.pop(name, None)
    return loss
