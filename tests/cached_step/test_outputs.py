"""`cached_step` gives a loss the types that the model returns, and scales beside the rows."""

from __future__ import annotations

import importlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from step_models import IN, LABELS, OUT, Lambda, N, gradients, images
from torch import Tensor, nn
from torch.nn.functional import normalize

from spcl_fast import SupConLoss
from spcl_fast.cached_step import cached_step
from spcl_fast.nested import tensors_in, with_tensors


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
