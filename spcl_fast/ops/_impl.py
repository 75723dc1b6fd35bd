"""The only dispatch: which implementation runs."""

from __future__ import annotations

import importlib
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from spcl_fast import native
from spcl_fast.ops import _triton
from spcl_fast.precision import at_least_float32

Impl = Literal["auto", "reference", "chunked", "native", "triton"]


def _native_lacks(device: torch.device) -> str:
    if device.type != "cpu":
        return f"must be given tensors on the CPU, got {device}"
    if not native.is_built():
        return "needs the extension spcl_fast._C, which this installation was built without"
    return ""


# Packages with a module for every op.
_FUSED = {
    "chunked": "spcl_fast.chunked",
    "native": "spcl_fast.native",
    "triton": "spcl_fast.kernels",
}
# What "auto" tries on a device before "chunked".
_FIRST = {"cpu": "native", "cuda": "triton"}
# Functions of a device: what is missing there, "" where nothing is. The others always run.
_LACKS = {"native": _native_lacks, "triton": _triton.lacks}


def resolve(impl: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """Return the name of the implementation that `impl` means for tensors on `device`.

    "auto" is native on a CPU and triton on a GPU where they run, in float32 and narrower, and
    else chunked.

    Raises:
        TypeError: `impl` is "native" or "triton", which do not compute in float64.
        ValueError: `impl` is not an implementation.
        RuntimeError: `impl` is "native" or "triton", and not there or not for `device`.
    """
    if impl not in get_args(Impl):
        raise ValueError(f"impl must be one of {', '.join(get_args(Impl))}, got {impl!r}")
    if impl == "auto":
        first = _FIRST.get(device.type)
        runs = first is not None and dtype != torch.float64 and not _LACKS[first](device)
        return first if first is not None and runs else "chunked"
    if impl in _LACKS:
        if dtype == torch.float64:
            raise TypeError(f"z must be float32, bfloat16 or float16 for {impl=}, got {dtype}")
        if lack := _LACKS[impl](device):
            raise RuntimeError(f"{impl=} {lack}")
    return impl


def fused(name: str, function: str) -> Any:
    """Return `function`, an op or its _fwd or _bwd, by the implementation `name`."""
    op = function.removesuffix("_fwd").removesuffix("_bwd")
    return getattr(importlib.import_module(f"{_FUSED[name]}.{op}"), function)


def rows_for(name: str, z: Tensor, refs: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the rows in the dtype that `name` computes in: triton takes half types as they are."""
    if name == "triton":
        return z, refs
    return at_least_float32(z), None if refs is None else at_least_float32(refs)
