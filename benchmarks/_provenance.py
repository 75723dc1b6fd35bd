"""What a result file must say of how it was made."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import spcl_fast

REPOSITORY = Path(__file__).resolve().parents[1]


def provenance(module: str, arguments: list[str]) -> dict[str, Any]:
    """Return the command, the commit, versions and the processor."""
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
        "threads": torch.get_num_threads(),
    }


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else platform.processor()
