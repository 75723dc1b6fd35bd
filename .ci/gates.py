"""Compile the kernels within the limits of tests/kernels: python .ci/gates.py CASES RESULTS.json.

CASES is all, or common for one size of every kernel on each architecture that is emulated.
"""

from __future__ import annotations

import io
import re
import sys
from contextlib import redirect_stdout
from typing import Any

from gpucheck import aot
from resources import resources
from triton import knobs

from tests.kernels import compiled

COMMON_SIZES = ("D=128", "D=512", "merge_parts", "row_weights", "interval")
# What they add is shown by the others of the kernels for capability 9.0, which take longest.
LEFT_OUT = ("3 planes", "refs")


def common() -> list[dict[str, Any]]:
    """Return the cases of one size."""
    emulated = [case for case in compiled.cases() if case["targets"][0] in ("sm_80", "sm_90")]
    return [case for case in emulated if is_common(case["name"])]


def is_common(name: str) -> bool:
    """Return whether a case is among those."""
    is_long = name.startswith("hopper") and any(x in name for x in LEFT_OUT)
    return not is_long and any(size in name for size in COMMON_SIZES)


compile_kernel, assemble_again = aot.jit_compile, aot.serialized
printed = io.StringIO()


def compile_and_note(*how: Any) -> Any:
    """Return what Triton makes of a kernel; what its assembler says of it is in `printed`."""
    printed.seek(0)
    printed.truncate()
    with redirect_stdout(printed):
        return compile_kernel(*how)


def serialized(*how: Any) -> list[tuple[str, str]]:
    """Return what gpucheck.aot.serialized does, of the log if the kernel was assembled just now."""
    log = printed.getvalue()
    if "ptxas info" not in log:  # Triton had it in its cache
        return assemble_again(*how)  # type: ignore[no-any-return]
    return re.findall(r"\((C75\d\d)\)[^\n]*?(wgmma[^\n]*serialized[^\n]*)", log)


if __name__ == "__main__":
    aot.cubin_stats, aot.serialized, aot.jit_compile = resources, serialized, compile_and_note
    knobs.nvidia.dump_ptxas_log = True
    factory = {"all": "tests.kernels.compiled:cases", "common": "__main__:common"}[sys.argv[1]]
    sys.exit(aot.main([factory, "--json", sys.argv[2]]))
