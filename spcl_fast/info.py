"""What runs here: `python -m spcl_fast.info` prints versions, implementations and auto's choice."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from typing import get_args

import torch

from spcl_fast._version import __version__
from spcl_fast.native import build_info, cuda_architectures, why_not_built, why_not_on_cuda
from spcl_fast.ops import _triton
from spcl_fast.ops._impl import Impl, resolve


def describe() -> dict[str, str]:
    """Return facts about the installation by name, in printing order."""
    devices = ["cpu", "cuda"]
    if torch.backends.mps.is_available():
        devices.append("mps")
    facts = {
        "spcl_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _describe_triton(),
        "extension": ", ".join(f"{k} {v}" for k, v in _host_facts().items()) or not_built(),
        "extension on cuda": _describe_cuda(),
        "implementations": ", ".join(_that_run()),
    }
    for device in devices:
        facts[f"auto on {device}"] = resolve("auto", torch.device(device))
    return facts


def _that_run() -> Iterator[str]:
    """Yield the implementations that run on the CPU or on the GPU that is here."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for name, device in product(get_args(Impl)[1:], devices):
        with suppress(RuntimeError):
            yield f"{resolve(name, torch.device(device))} on {device}"


def not_built() -> str:
    """Return why there is no extension, and how to get it."""
    reason = why_not_built()
    how = "pip install --no-build-isolation builds it (README, Installation)"
    return f"not built: {reason or 'no reason noted'}; {how}"


def _host_facts() -> dict[str, str]:
    return {k: v for k, v in build_info().items() if not k.startswith("cuda")}


def _describe_cuda() -> str:
    if not cuda_architectures():
        return why_not_on_cuda() or "not built"
    built = f"cuda {build_info()['cuda']}, architectures {cuda_architectures()}"
    if not torch.cuda.is_available():
        return f"{built}; no GPU is visible"
    try:
        resolve("native", torch.device("cuda"))
    except RuntimeError as error:
        return f"{built}, does not run here: {error}"
    return f"{built}, runs here"


def _describe_triton() -> str:
    found = _triton.version()
    if found is None:
        return "not installed"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if lack := _triton.lacks(device):
        return f"{found}, does not run here: impl='triton' {lack}"
    return f"{found}, runs on {device}; kernels for capability 9.0: {_triton.hopper(device)}"


def main() -> None:
    """Print the facts, one per line."""
    facts = describe()
    width = max(map(len, facts))
    for name, value in facts.items():
        sys.stdout.write(f"{name:<{width}}  {value}\n")


if __name__ == "__main__":
    main()
