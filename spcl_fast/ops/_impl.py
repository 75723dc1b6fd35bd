"""The only dispatch: which implementation runs."""

from __future__ import annotations

import importlib
from typing import Any, Literal, get_args

import torch

from spcl_fast import native

Impl = Literal["auto", "reference", "chunked", "native"]

# Packages with `<op>_fwd` and `<op>_bwd` for every differentiable op.
_FUSED = {"chunked": "spcl_fast.chunked", "native": "spcl_fast.native"}


def resolve(impl: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """Return the name of the implementation that `impl` means for tensors on `device`.

    "auto" is native for float32 and narrower on a CPU where the extension is built, else chunked.

    Raises:
        TypeError: `impl` is "native", which does not compute in float64.
        ValueError: `impl` is not an implementation.
        RuntimeError: `impl` is "native", and the extension is not built or not for `device`.
    """
    if impl not in get_args(Impl):
        raise ValueError(f"impl must be one of {', '.join(get_args(Impl))}, got {impl!r}")
    if impl not in ("auto", "native"):
        return impl
    is_built = native.is_built()
    if impl == "auto":
        runs = is_built and device.type == "cpu" and dtype != torch.float64
        return "native" if runs else "chunked"
    if dtype == torch.float64:
        raise TypeError(f"z must be float32, bfloat16 or float16 for impl='native', got {dtype}")
    if device.type != "cpu":
        raise RuntimeError(f"impl='native' must be given tensors on the CPU, got {device}")
    if not is_built:
        raise RuntimeError(
            "impl='native' needs the extension spcl_fast._C, which this installation was built "
            "without"
        )
    return impl


def fused(name: str) -> Any:
    """Return the package that holds the forward and backward functions of `name`."""
    return importlib.import_module(_FUSED[name])
