"""Which implementation runs: what auto picks, and that a named one runs or says why not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from spcl_fast import native, pair_lse
from spcl_fast.ops import _triton
from spcl_fast.ops._impl import resolve

HALF = torch.bfloat16


@pytest.fixture
def everything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "is_built", lambda: True)
    monkeypatch.setattr(_triton, "version", lambda: "3.8.0+git12ab")


# Every device with its own row in the table, one without, and the dtype that only some compute in.
@pytest.mark.usefixtures("everything_is_there")
@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cpu", torch.float32, "native"),
        ("cpu", HALF, "native"),
        ("cpu", torch.float64, "chunked"),
        ("cuda", torch.float32, "triton"),
        ("cuda:1", HALF, "triton"),
        ("cuda", torch.float64, "chunked"),
        ("meta", torch.float32, "chunked"),
    ],
)
def test_auto(device: str, dtype: torch.dtype, expected: str) -> None:
    assert resolve("auto", torch.device(device), dtype) == expected


# Not installed, and older than what the kernels are written for.
@pytest.mark.parametrize("version", [None, "3.5.1"])
def test_auto_without_triton(version: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "version", lambda: version)
    assert resolve("auto", torch.device("cuda")) == "chunked"
    with pytest.raises(RuntimeError, match="impl='triton' needs triton"):
        resolve("triton", torch.device("cuda"))


@pytest.mark.usefixtures("everything_is_there")
@pytest.mark.parametrize(
    ("impl", "device", "dtype", "error", "message"),
    [
        ("fast", "cpu", HALF, ValueError, "impl must be one of auto, reference, chunked, native"),
        ("native", "cpu", torch.float64, TypeError, "z must be float32, bfloat16 or float16"),
        ("triton", "cuda", torch.float64, TypeError, "z must be float32, .* impl='triton'"),
        ("native", "cuda", HALF, RuntimeError, "impl='native' must be given tensors on the CPU"),
        ("triton", "meta", HALF, RuntimeError, "impl='triton' must be given tensors on a GPU, got"),
    ],
)
def test_a_named_implementation_runs_or_raises(
    impl: str, device: str, dtype: torch.dtype, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        resolve(impl, torch.device(device), dtype)


def test_triton_runs_on_the_cpu_only_where_something_runs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    triton = pytest.importorskip("triton")
    cpu = torch.device("cpu")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    assert resolve("triton", cpu) == "triton"
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)

    class NoDriver:
        @property
        def active(self) -> Any:
            raise RuntimeError("0 active drivers")

    on_the_cpu = SimpleNamespace(active=SimpleNamespace(get_active_torch_device=lambda: cpu))
    monkeypatch.setattr(triton.runtime, "driver", on_the_cpu)
    assert resolve("triton", cpu) == "triton"
    monkeypatch.setattr(triton.runtime, "driver", NoDriver())
    with pytest.raises(RuntimeError, match="impl='triton' must be given tensors on a GPU, or on"):
        pair_lse(torch.ones(3, 2), 0.1, impl="triton")
