"""Compile the kernels within the limits of tests/kernels: python .ci/gates.py CASES RESULTS.json.

CASES is all, or common for those of another Triton: what it may compile to other code. What
kernels for capability 9.0 may use is in tests/kernels/compiled_limits.txt: registers of each role,
and at most how much shared memory with any of the Tritons.
"""

from __future__ import annotations

import gc
import io
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from emulated import leave_out_assembler
from gpucheck import aot
from resources import resources
from triton import knobs
from triton.compiler.compiler import make_backend
from triton.runtime.cache import get_cache_manager

from tests.kernels import compiled

# The fewest products and the most, in registers and by steps of features.
PLAIN_SIZES = ("bf16 D=128", "3 planes D=128", "bf16 D=272", "panel_product 2 planes")
WITHOUT_PRODUCTS = ("merge_parts", "row_weights", "interval", "class_")
# Of the kernels for capability 9.0 what others show, which take longest.
LEFT_OUT = ("3 planes", "refs", "fp16")


def common() -> list[dict[str, Any]]:
    """Return every kernel for capability 9.0, and the plain ones of some sizes."""
    return [case for case in compiled.cases() if is_common(case["name"], *case["targets"])]


def is_common(name: str, target: str) -> bool:
    """Return whether a case is among those; what has no products is compiled for sm_80 alone."""
    if name.startswith("hopper"):
        return ("D=128" in name or "D=272" in name) and not any(x in name for x in LEFT_OUT)
    if name.startswith(WITHOUT_PRODUCTS):
        return target == "sm_80"
    is_size = any(size in name for size in PLAIN_SIZES) and "refs" not in name
    return is_size and target in ("sm_80", "sm_90")


compile_kernel, run_case = aot.jit_compile, aot.run_case
code: dict[str, str] = {}


def compile_and_note(*how: Any) -> Any:
    """Return a kernel; its PTX is in Triton's cache where a test on an emulator has compiled it."""
    kernel = compile_kernel(*how)
    if "ptx" in kernel.asm:
        code["ptx"] = kernel.asm["ptx"]
        kernel.asm["cubin"], code["log"] = assembled(kernel)
    return kernel


def assembled(kernel: Any) -> tuple[bytes, str]:
    """Return machine code and what the assembler says of it; both stay beside the PTX."""
    cache = get_cache_manager(kernel.hash)
    paths = [cache.get_file(name) for name in ("assembled.cubin", "assembled.log")]
    if None in paths:
        target, printed = kernel.metadata.target, io.StringIO()
        with redirect_stdout(printed):
            how = {}, kernel.metadata, target.arch
            cubin = make_backend(target).make_cubin(kernel.asm["ptx"], *how)
        paths = [
            cache.put(cubin, "assembled.cubin"),
            cache.put(printed.getvalue(), "assembled.log", binary=False),
        ]
    return Path(paths[0]).read_bytes(), Path(paths[1]).read_text(encoding="utf-8")


def serialized(*_how: Any) -> list[tuple[str, str]]:
    """Return what gpucheck.aot.serialized does, without assembling again."""
    return re.findall(r"\((C75\d\d)\)[^\n]*?(wgmma[^\n]*serialized[^\n]*)", code["log"])


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
    knobs.runtime.add_stages_inspection_hook = leave_out_assembler
    gc.freeze()  # what is imported stays
    factory = {"all": "tests.kernels.compiled:cases", "common": "__main__:common"}[sys.argv[1]]
    sys.exit(aot.main([factory, "--json", sys.argv[2]]))
