"""Which implementation runs: what auto picks, and that a named one runs or says why not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast import native, pair_lse
from spcl_fast.ops import _device, _impl, _triton
from spcl_fast.ops._impl import fusing, resolve, resolve_for, rows_for

HALF = torch.bfloat16
H100 = (9, 0)
T4 = (7, 5)


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    *,
    triton: str | None = "3.8.0+git12ab",
    is_built: bool = True,
    built_for: str = "7.5,8.0,9.0+PTX",
    gpu: tuple[int, int] | None = H100,
) -> None:
    monkeypatch.setattr(_triton, "version", lambda: triton)
    monkeypatch.setattr(native, "is_built", lambda: is_built)
    monkeypatch.setattr(native, "cuda_architectures", lambda: built_for)
    monkeypatch.setattr(native._extension, "cuda_architectures", lambda: built_for)
    monkeypatch.setattr(_device, "capability", lambda device: gpu)


@pytest.fixture
def everything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)


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


# Each of the facts that auto on a GPU asks for, missing alone and together with others; the widest
# rows that triton takes first, and one feature more.
@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, "triton"),
        ({"triton": None}, "native"),
        ({"triton": "3.5.1"}, "native"),
        ({"built_for": ""}, "triton"),
        ({"is_built": False}, "triton"),
        ({"built_for": "10.0,12.0+PTX"}, "triton"),
        ({"triton": None, "is_built": False}, "chunked"),
        ({"gpu": None}, "triton"),
        ({"gpu": T4}, "native"),
        ({"gpu": T4, "built_for": "8.0,9.0+PTX"}, "chunked"),
        ({"gpu": T4, "built_for": ""}, "chunked"),
    ],
)
def test_auto_on_a_gpu(
    facts: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, **facts)
    assert resolve("auto", torch.device("cuda"), HALF) == expected
    assert resolve("auto", torch.device("cpu"), HALF) == (
        "native" if facts.get("is_built", True) else "chunked"
    )


# No GPU at all, and GPUs of a generation before, in, between and after those built for; an
# architecture with an "a" has no relatives, nor has what is built from it.
@pytest.mark.parametrize(
    ("built_for", "capability", "expected"),
    [
        ("", (8, 0), False),
        ("8.0", (7, 5), False),
        ("8.0", (8, 0), True),
        ("8.0", (8, 9), True),
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("8.0,9.0+PTX", (10, 0), True),
        ("8.0+PTX,9.0", (10, 0), True),
        ("8.0,10.0+PTX", (9, 0), False),
        ("9.0a", (9, 0), True),
        ("10.0a+PTX", (10, 3), False),
        ("10.0f", (10, 3), True),
        ("10.0,12.0", (12, 1), True),
    ],
)
def test_has_code_for(
    built_for: str, capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, built_for=built_for)
    assert native.has_code_for(capability) is expected


# Not installed, older than what the kernels are written for, and a GPU that is.
@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"triton": None}, "impl='triton' needs triton, which is not installed"),
        ({"triton": "3.5.1"}, r"impl='triton' needs triton 3.6 or later, got 3\.5\.1"),
        ({"gpu": T4}, "impl='triton' needs a GPU of compute capability 8.0 or later, got 7.5"),
    ],
)
def test_triton_says_what_is_missing(
    facts: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, **facts)
    with pytest.raises(RuntimeError, match=message):
        resolve("triton", torch.device("cuda"))


# Not built at all, for CPUs alone, and for other GPUs: each says how to build it.
@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"is_built": False}, "needs the extension spcl_fast._C, which this installation was"),
        ({"built_for": ""}, "on cuda:0 needs .* built with CUDA: build .* SPCL_BUILD=cuda"),
        ({"gpu": (6, 1)}, r"capability 6\.1, got 7\.5,8\.0,9\.0\+PTX: .*ARCH_LIST=6\.1"),
    ],
)
def test_native_says_what_is_missing(
    facts: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, **facts)
    with pytest.raises(RuntimeError, match=message):
        resolve("native", torch.device("cuda:0"))


@pytest.mark.usefixtures("everything_is_there")
@pytest.mark.parametrize(
    ("impl", "device", "dtype", "error", "message"),
    [
        ("fast", "cpu", HALF, ValueError, "impl must be one of auto, reference, chunked, native"),
        ("native", "cpu", torch.float64, TypeError, "z must be float32, bfloat16 or float16"),
        ("native", "cuda", torch.float64, TypeError, "z must be float32, .* impl='native'"),
        ("triton", "cuda", torch.float64, TypeError, "z must be float32, .* impl='triton'"),
        ("native", "meta", HALF, RuntimeError, "impl='native' must be given tensors on the CPU or"),
        ("triton", "meta", HALF, RuntimeError, "impl='triton' must be given tensors on a GPU, got"),
    ],
)
def test_a_named_implementation_runs_or_raises(
    impl: str, device: str, dtype: torch.dtype, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        resolve(impl, torch.device(device), dtype)


# Wherever it runs a named one is taken, for rows that auto would give to another as well.
@pytest.mark.usefixtures("everything_is_there")
@pytest.mark.parametrize("impl", ["reference", "chunked", "native", "triton"])
def test_a_named_implementation_is_taken(impl: str) -> None:
    assert resolve(impl, torch.device("cuda"), HALF) == impl


def on_a_gpu(num_features: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return 3 rows that claim to be on a GPU: shapes and dtypes without values."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    rows = torch.empty(3, num_features, dtype=dtype, device="meta")
    return FakeTensor(FakeTensorMode(), rows, torch.device("cuda", 0))


@pytest.mark.usefixtures("everything_is_there")
def test_the_rows_say_what_they_are() -> None:
    assert resolve_for("auto", on_a_gpu(8)) == resolve_for("auto", on_a_gpu(1024)) == "triton"
    assert resolve_for("auto", on_a_gpu(8, torch.float64)) == "chunked"
    assert resolve_for("auto", torch.tensor(1.0)) == "native"  # for the checks to complain about


# The CPU kernels multiply in float32, GPUs have units for half precision.
@pytest.mark.parametrize("name", ["triton", "native", "chunked"])
def test_half_rows_stay_half_on_a_gpu(name: str) -> None:
    z, on_the_cpu = on_a_gpu(8, HALF), torch.zeros(3, 8, dtype=HALF)
    wanted = torch.float32 if name == "chunked" else HALF
    assert [x.dtype for x in rows_for(name, z, z) if x is not None] == [wanted, wanted]
    if name != "triton":
        assert rows_for(name, on_the_cpu, None)[0].dtype == torch.float32


def test_capability_of_what_is_no_gpu_here() -> None:
    assert _device.capability(torch.device("cpu")) is None
    if not torch.cuda.is_available():
        assert _device.capability(torch.device("cuda:0")) is None


# What a GPU answers is a constant for the compiler, which follows the choice.
def test_the_choice_can_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = _device.capability
    pretend(monkeypatch)
    monkeypatch.setattr(_device, "capability", capability)
    h100 = SimpleNamespace(major=9, minor=0)
    gpus = SimpleNamespace(is_available=lambda: True, get_device_properties=lambda device: h100)
    monkeypatch.setattr(_device, "torch", SimpleNamespace(cuda=gpus))
    cuda = torch.device("cuda", 0)
    assert _device.capability(cuda) == H100

    def choose(z: Tensor) -> tuple[Tensor, str]:
        return z + 1, resolve("auto", cuda, z.dtype)

    torch.compiler.reset()
    z = torch.zeros(2, 8)
    compiled = torch.compile(choose, fullgraph=True, backend="eager", dynamic=True)
    assert compiled(z)[1] == choose(z)[1] == resolve("auto", cuda, z.dtype)


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


def test_what_fuses_a_loss_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(impl: str, z: Tensor) -> str:
        asked.append((impl, z.dtype))
        return "triton" if z.dtype == torch.float32 else "chunked"

    monkeypatch.setattr(_impl, "resolve_for", answer)
    monkeypatch.setattr(_impl, "_fusing", {})
    z = torch.zeros(4, 2)
    for _ in range(2):
        assert fusing("auto", "infonce_terms", z) == "triton"
        assert fusing("auto", "infonce_terms", z.double()) is None
    assert asked == [("auto", torch.float32), ("auto", torch.float64)]


def test_the_error_of_a_wrong_name_is_the_only_one() -> None:
    with pytest.raises(ValueError, match="impl must be one of auto") as caught:
        fusing("fast", "infonce_terms", torch.zeros(2, 2))
    assert caught.value.__context__ is None
