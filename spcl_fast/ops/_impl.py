"""The only dispatch: which implementation runs."""

from __future__ import annotations

import importlib
from typing import Any, Literal, get_args

import torch

Impl = Literal["auto", "reference", "chunked"]

# Packages with `<op>_fwd` and `<op>_bwd` for every differentiable op.
_FUSED = {"chunked": "spcl_fast.chunked"}


def resolve(impl: str, device: torch.device) -> str:
    """Return the name of the implementation that `impl` means for tensors on `device`.

    Raises:
        ValueError: `impl` is not an implementation.
    """
    if impl not in get_args(Impl):
        raise ValueError(f"impl must be one of {', '.join(get_args(Impl))}, got {impl!r}")
    return "chunked" if impl == "auto" else impl


def fused(name: str) -> Any:
    """Return the package that holds the forward and backward functions of `name`."""
    return importlib.import_module(_FUSED[name])
