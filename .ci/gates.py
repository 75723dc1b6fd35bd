"""Compile the kernels within the limits of tests/kernels: python .ci/gates.py CASES RESULTS.json.

CASES is all, or common for one size of every kernel on each architecture that is emulated. What
kernels for capability 9.0 may use is in tests/kernels/compiled_limits.txt: registers of each role,
and at most how much shared memory with any of the Tritons.
"""

from __future__ import annotations

import io
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from gpucheck import aot
from resources import resources
from triton import knobs

from tests.kernels import compiled

COMMON_SIZES = ("D=128", "D=512", "merge_parts", "row_weights", "interval")
# What they add is shown by the others of the kernels for capability 9.0, which take longest.
LEFT_OUT = ("3 planes", "refs", "fp16")


def common() -> list[dict[str, Any]]:
    """Return the cases of one size."""
    emulated = [case for case in compiled.cases() if case["targets"][0] in ("sm_80", "sm_90")]
    return [case for case in emulated if is_common(case["name"])]


def is_common(name: str) -> bool:
    """Return whether a case is among those."""
    is_long = name.startswith("hopper") and any(x in name for x in LEFT_OUT)
    return not is_long and any(size in name for size in COMMON_SIZES)


compile_kernel, assemble_again, run_case = aot.jit_compile, aot.serialized, aot.run_case
printed = io.StringIO()
code: dict[str, str] = {}


def compile_and_note(*how: Any) -> Any:
    """Return what Triton makes of a kernel; what its assembler says of it is in `printed`."""
    printed.seek(0)
    printed.truncate()
    with redirect_stdout(printed):
        compiled_kernel = compile_kernel(*how)
    code["ptx"] = compiled_kernel.asm.get("ptx", "")
    return compiled_kernel


def serialized(*how: Any) -> list[tuple[str, str]]:
    """Return what gpucheck.aot.serialized does, of the log if the kernel was assembled just now."""
    log = printed.getvalue()
    if "ptxas info" not in log:  # Triton had it in its cache
        return assemble_again(*how)  # type: ignore[no-any-return]
    return re.findall(r"\((C75\d\d)\)[^\n]*?(wgmma[^\n]*serialized[^\n]*)", log)


def budgets() -> dict[str, tuple[int, ...]]:
    """Return registers, at the launch, of groups and of warps that load, and shared KiB."""
    lines = Path("tests/kernels/compiled_limits.txt").read_text(encoding="utf-8").splitlines()[1:]
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return {name: tuple(map(int, numbers)) for name, *numbers in rows}


def budget_of(ptx: str) -> tuple[int, ...]:
    """Return the registers of compiled code."""
    (launch,) = re.findall(r"\.maxnreg (\d+)", ptx)
    more, fewer = (re.findall(rf"setmaxnreg\.{way}\S*\s+(\d+)", ptx) for way in ("inc", "dec"))
    return int(launch), min(map(int, more)), min(map(int, fewer))


def run_within_budget(case: Any, target: str) -> dict[str, Any]:
    """Return what gpucheck.aot.run_case does, with the limits of every role."""
    row: dict[str, Any] = run_case(case, target)
    if case.name.startswith("hopper") and "regs" in row:
        given, used = budgets().get(case.name, ()), (*budget_of(code["ptx"]), row["shared"] / 1024)
        if used[:-1] != given[:-1] or used[-1] > given[-1]:
            row["broken"].append(f"registers and KiB {used}, compiled_limits.txt has {given}")
    return row


if __name__ == "__main__":
    aot.run_case = run_within_budget
    aot.cubin_stats, aot.serialized, aot.jit_compile = resources, serialized, compile_and_note
    knobs.nvidia.dump_ptxas_log = True
    factory = {"all": "tests.kernels.compiled:cases", "common": "__main__:common"}[sys.argv[1]]
    sys.exit(aot.main([factory, "--json", sys.argv[2]]))
