"""What a result file must record about its origin."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import spcl_fast
from spcl_fast import native
from spcl_fast.atomic_file import atomic_file

REPOSITORY = Path(__file__).resolve().parents[1]


def provenance(module: str, arguments: list[str]) -> dict[str, Any]:
    """Return the command, the commit, versions, the processor and the instructions used on it."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True
    )
    return {
        "command": " ".join(["python -m", module, *arguments]),
        "commit": commit.stdout.strip(),
        "spcl_fast": spcl_fast.__version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "processor": processor(),
        # "AMD EPYC" names CPUs with AVX2 alone and with AVX-512.
        "cpu_kernels": native.build_info().get("cpu_kernels", "none"),
        "threads": torch.get_num_threads(),
    }


def write_result(path: Path, result: dict[str, Any], *, append: bool) -> None:
    """Write a result file, or append the command and the rows to one.

    Raises:
        ValueError: the file was made by another commit or version, or on another processor or
            device.
    """
    if append:
        before = json.loads(path.read_text(encoding="utf-8"))
        for key in ("commit", "spcl_fast", "torch", "python", "processor"):
            was, now = (one[key].removesuffix("-dirty") for one in (before, result))
            if was != now:
                raise ValueError(f"{key} of {path.name} must be {now} to append, got {was}")
        was, now = before.get("device"), result.get("device")
        if was != now:
            raise ValueError(f"device of {path.name} must be {now} to append, got {was}")
        rows = {key: before[key] + result[key] for key in ("rows", "left_out") if key in result}
        result = result | rows | {"command": f"{before['command']} && {result['command']}"}
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else platform.processor()
