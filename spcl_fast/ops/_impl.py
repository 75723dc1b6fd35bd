"""The only dispatch: which implementation runs."""

from __future__ import annotations

import importlib
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from spcl_fast import native
from spcl_fast.ops import _device, _triton
from spcl_fast.precision import dtype_of_results

Impl = Literal["auto", "reference", "chunked", "native", "triton"]


# The most features of a row that "auto" gives to triton where native has CUDA: up to here triton's
# backward holds whole rows. To be calibrated on a GPU: `python -m benchmarks --device cuda`.
MAX_TRITON_D = 256


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


# Packages with a module for every op.
_FUSED = {
    "chunked": "spcl_fast.chunked",
    "native": "spcl_fast.native",
    "triton": "spcl_fast.kernels",
}
# Functions of a device: what is missing there, "" where nothing is. The others always run.
_LACKS = {"native": _native_lacks, "triton": _triton.lacks}


def _candidates(device: torch.device, num_features: int) -> tuple[str, ...]:
    """Return what "auto" tries before "chunked", the fastest first."""
    if device.type == "cpu":
        return ("native",)
    if device.type == "cuda":
        return ("triton", "native") if num_features <= MAX_TRITON_D else ("native", "triton")
    return ()


def resolve(
    impl: str, device: torch.device, dtype: torch.dtype = torch.float32, num_features: int = 0
) -> str:
    """Return the name of the implementation that `impl` means for rows of `num_features`.

    "auto" is, in float32 and narrower, native on a CPU; on a GPU triton for rows of up to
    `MAX_TRITON_D` features and native for wider ones, and either where the other does not run; and
    else chunked.

    Raises:
        TypeError: `impl` is "native" or "triton", which do not compute in float64.
        ValueError: `impl` is not an implementation.
        RuntimeError: `impl` is "native" or "triton", and not there or not for `device`.
    """
    if impl not in get_args(Impl):
        raise ValueError(f"impl must be one of {', '.join(get_args(Impl))}, got {impl!r}")
    if impl == "auto":
        if dtype != torch.float64:
            for name in _candidates(device, num_features):
                if not _LACKS[name](device):
                    return name
        return "chunked"
    if impl in _LACKS:
        if dtype == torch.float64:
            raise TypeError(f"z must be float32, bfloat16 or float16 for {impl=}, got {dtype}")
        if lack := _LACKS[impl](device):
            raise RuntimeError(f"{impl=} {lack}")
    return impl


def resolve_for(impl: str, z: Tensor) -> str:
    """Return the name of the implementation that `impl` means for the rows `z` (N, D)."""
    return resolve(impl, z.device, z.dtype, z.shape[-1] if z.dim() else 0)


def fused(name: str, function: str) -> Any:
    """Return `function`, an op or its _fwd or _bwd, by the implementation `name`."""
    op = function.removesuffix("_fwd").removesuffix("_bwd")
    return getattr(importlib.import_module(f"{_FUSED[name]}.{op}"), function)


def dtype_for(name: str, z: Tensor) -> torch.dtype:
    """Return the dtype in which `name` takes the rows `z`: GPUs multiply half types as they are."""
    takes_half = name == "triton" or (name == "native" and z.device.type == "cuda")
    return z.dtype if takes_half else dtype_of_results(z)


def rows_for(name: str, z: Tensor, refs: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the rows in the dtype in which `name` takes them (differentiable)."""
    dtype = dtype_for(name, z)
    return z.to(dtype), None if refs is None else refs.to(dtype)
