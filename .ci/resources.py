"""What a compiled kernel uses, without the half second that nvdisasm takes for each."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from gpucheck.aot import BIN, GROUPS, cubin_stats


def resources(cubin: bytes) -> dict[str, Any]:
    """Return what gpucheck.aot.cubin_stats does; of code without a stack no counts of opcodes."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [str(Path(BIN, "cuobjdump")), "--dump-resource-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = {name: int(size) for name, size in re.findall(r"(REG|STACK|SHARED):(\d+)", printed)}
    if used["STACK"]:  # spilled registers lie there
        return cubin_stats(cubin)  # type: ignore[no-any-return]
    registers = {"regs": used["REG"], "stack": 0, "static_smem": used["SHARED"], "instrs": None}
    return dict.fromkeys(GROUPS, 0) | registers
