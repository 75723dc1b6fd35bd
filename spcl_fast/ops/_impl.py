"""The only dispatch: which implementation runs."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from itertools import product
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from spcl_fast import chunked, native
from spcl_fast.ops import _device, _triton
from spcl_fast.precision import dtype_of_results

Impl = Literal["auto", "reference", "chunked", "native", "triton"]
_IMPLS = get_args(Impl)  # which Dynamo of torch 2.6 cannot trace


def _native_lacks(device: torch.device) -> str:
    if device.type not in ("cpu", "cuda"):
        return f"must be given tensors on the CPU or a CUDA device, got {device}"
    if not native.is_built():
        return "needs the extension spcl_fast._C, which this installation was built without"
    if device.type == "cpu":
        return ""
    built_for = native.cuda_architectures()
    if not built_for:
        return (
            f"on {device} needs the extension spcl_fast._C built with CUDA: build spcl-fast with "
            "SPCL_BUILD=cuda, where PyTorch and the CUDA toolkit are for CUDA"
        )
    capability = _device.capability(device)
    if capability is None or native.has_code_for(capability):
        return ""
    found = "{}.{}".format(*capability)
    return (
        f"on {device} needs the extension spcl_fast._C built for compute capability {found}, got "
        f"{built_for}: build spcl-fast with TORCH_CUDA_ARCH_LIST={found}"
    )


class _Implementation(NamedTuple):
    package: ModuleType | str
    """It has what the files of the ops list as `implemented`: a module that has been imported, or
    the name of a package with a module for every op, imported when an op first needs it."""
    lacks: Callable[[torch.device], str] = lambda _device: ""
    """Says what is missing to run on a device, "" where nothing is."""
    computes_in_double: bool = False
    half_on: tuple[str, ...] = ()
    """Types of devices on which half-precision rows are multiplied as they are."""
    traced: frozenset[str] = frozenset()
    """Functions made of ops with fakes of their own, into which torch.compile looks."""
    fuses: frozenset[tuple[str, str]] = frozenset()
    """Ops that it has and others compose, with the type of device."""
    takes_bank: bool = False
    """Whether its `contrastive_terms` does."""


_IMPLEMENTATIONS = {
    "chunked": _Implementation(chunked, computes_in_double=True),
    "native": _Implementation(
        native,
        _native_lacks,
        half_on=("cuda",),
        traced=frozenset({"pair_lse_fwd", "pair_lse_bwd"}),
        fuses=frozenset(
            {
                ("contrastive_rows", "cpu"),
                ("contrastive_rows", "cuda"),
                ("contrastive_terms", "cpu"),
                ("infonce_terms", "cpu"),
            }
        ),
    ),
    "triton": _Implementation(
        "spcl_fast.kernels",
        _triton.lacks,
        half_on=("cpu", "cuda"),
        fuses=frozenset(product(("contrastive_terms", "infonce_terms"), ("cpu", "cuda"))),
        takes_bank=True,
    ),
}


# By type of device, what "auto" tries before "chunked", the fastest first.
_CANDIDATES = {"cpu": ("native",), "cuda": ("triton", "native")}


def resolve(impl: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """Return the name of the implementation that `impl` means on a device.

    "auto" means, in float32 and half precision, the first that runs there, and otherwise chunked:

        CPU    native
        GPU    triton, native

    Raises:
        TypeError: `impl` is "native" or "triton", which do not compute in float64.
        ValueError: `impl` is not an implementation.
        RuntimeError: `impl` is "native" or "triton", and is not available for `device`.
    """
    if impl not in _IMPLS:
        raise ValueError(f"impl must be one of {', '.join(_IMPLS)}, got {impl!r}")
    if impl == "auto":
        if dtype != torch.float64:
            for name in _CANDIDATES.get(device.type, ()):
                if not _IMPLEMENTATIONS[name].lacks(device):
                    return name
        return "chunked"
    if impl in _IMPLEMENTATIONS:
        implementation = _IMPLEMENTATIONS[impl]
        if dtype == torch.float64 and not implementation.computes_in_double:
            raise TypeError(f"z must be float32, bfloat16 or float16 for {impl=}, got {dtype}")
        if lack := implementation.lacks(device):
            raise RuntimeError(f"{impl=} {lack}")
    return impl


def resolve_for(impl: str, z: Tensor) -> str:
    """Return the name of the implementation that `impl` means for the rows `z` (N, D)."""
    return resolve(impl, z.device, z.dtype)


def fused(name: str, function: str) -> Any:
    """Return `function`, an op or its _fwd or _bwd, of the implementation `name`."""
    package = _IMPLEMENTATIONS[name].package
    if isinstance(package, str):
        package = _module(package, function)
    return getattr(package, function)


@functools.cache
def _module(package: str, function: str) -> ModuleType:
    op = function.removesuffix("_fwd").removesuffix("_bwd")
    return importlib.import_module(f"{package}.{op}")


_fusing: dict[tuple[str, str, torch.device, torch.dtype], str | None] = {}


def fusing(impl: str, op: str, z: Tensor) -> str | None:
    """Return the implementation that `impl` means for z if it has `op`, which others compose.

    What a machine has is asked once: the answer takes as long as some launches. Not for tracing.
    """
    place = impl, op, z.device, z.dtype
    found = _fusing.get(place, "")  # looked up once: a key takes as long as a small operator
    if found == "":
        name = resolve_for(impl, z)
        found = _fusing[place] = name if fuses(name, op, z.device) else None
    return found


def fuses(name: str, op: str, device: torch.device) -> bool:
    """Return whether the implementation `name` has `op`, which others compose, on a device."""
    return name in _IMPLEMENTATIONS and (op, device.type) in _IMPLEMENTATIONS[name].fuses


def takes_bank(name: str) -> bool:
    """Return whether `contrastive_terms` of the implementation `name` takes a bank."""
    return _IMPLEMENTATIONS[name].takes_bank


def is_traced(name: str, function: str) -> bool:
    """Return whether torch.compile may look into `function` of the implementation `name`."""
    return function in _IMPLEMENTATIONS[name].traced


def dtype_for(name: str, z: Tensor) -> torch.dtype:
    """Return the dtype in which `name` takes the rows `z`."""
    implementation = _IMPLEMENTATIONS.get(name)
    takes_half = implementation is not None and z.device.type in implementation.half_on
    return z.dtype if takes_half else dtype_of_results(z)


def rows_for(name: str, z: Tensor, refs: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the rows in the dtype in which `name` takes them (differentiable)."""
    dtype = dtype_for(name, z)
    return z.to(dtype), None if refs is None else refs.to(dtype)
