"""How a run was made: provenance.json in its folder, an entry for each start."""

from __future__ import annotations

import contextlib
import json
import platform
import re
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from spcl_fast._version import __version__
from spcl_fast.atomic_file import atomic_file

PROVENANCE_FILE = "provenance.json"


def note_start(folder: Path) -> None:
    """Add this start to the entries of a run folder."""
    path = folder / PROVENANCE_FILE
    entries = [*read_provenance(folder), current()]
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def read_provenance(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of a run folder, in their order; none where they cannot be read."""
    found = None
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / PROVENANCE_FILE).read_text(encoding="utf-8"))
    rows = found if isinstance(found, list) else []
    return [row for row in rows if isinstance(row, dict)]


def current() -> dict[str, Any]:
    """Return the command, the versions and the hardware of this process."""
    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return {
        "started": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": _command(),
        "spcl_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": ", ".join(dict.fromkeys(gpus)) or None,
    }


def _command() -> str:
    program, *words = sys.argv or [""]
    path = Path(program)
    name = path.parent.name if path.name == "__main__.py" else path.name
    if path.name in ("cli.py", "__main__.py") and path.parent.name == "spcl_fast":
        name = "spcl-fast"
    return shlex.join([name, *words])


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()
