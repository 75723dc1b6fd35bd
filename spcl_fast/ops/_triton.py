"""Whether Triton is installed and runs on a device; it is imported only when that is asked."""

from __future__ import annotations

import importlib
import importlib.util

import torch

from spcl_fast.ops import _device

OLDEST = (3, 6)
OLDEST_GPU = (8, 0)  # what Triton compiles for; earlier ones have no bfloat16
# A constant, so that torch.compile can trace the question.
_IS_INSTALLED = importlib.util.find_spec("triton") is not None


def version() -> str | None:
    """Return the version of Triton, None if it is not installed."""
    if not _IS_INSTALLED:
        return None
    import triton

    return str(triton.__version__)


def lacks(device: torch.device) -> str:
    """Return what is missing to run kernels on tensors of `device`, "" if nothing is."""
    found = version()
    if found is None:
        return "needs triton, which is not installed (the extra of spcl-fast is named triton)"
    major, minor = found.split(".")[:2]
    if (int(major), int(minor)) < OLDEST:
        return f"needs triton {OLDEST[0]}.{OLDEST[1]} or later, got {found}"
    if device.type == "cuda":
        capability = _device.capability(device)
        if capability is None or capability >= OLDEST_GPU:
            return ""
        return "needs a GPU of compute capability 8.0 or later, got {}.{}".format(*capability)
    if device.type != "cpu":
        return f"must be given tensors on a GPU, got {device}"
    # Tracing asks only about a GPU; a kernel that no driver can run says so when it is launched.
    if torch.compiler.is_compiling() or _runs_on_cpu():
        return ""
    return "must be given tensors on a GPU, or on the CPU with TRITON_INTERPRET=1, got cpu"


def hopper(device: torch.device) -> str:
    """Return whether the kernels for compute capability 9.0 run on a device, in words."""
    info = importlib.import_module("spcl_fast.kernels.hopper.info")
    return str(info.describe(device))


def _runs_on_cpu() -> bool:
    """Return whether kernels take CPU tensors: interpreted, or by a driver that runs them there."""
    import triton

    if triton.knobs.runtime.interpret:
        return True
    try:
        return bool(triton.runtime.driver.active.get_active_torch_device().type == "cpu")
    except RuntimeError:  # no driver is active
        return False
