"""Plugin of pytest for .ci/run: each case of the kernels on one of the two emulators.

The cases of a test are the squares of a chessboard, a side for each list of parameters: those of
one colour run on one architecture and the others on the other. Which colour that of its first case
is hangs on the name of the file, whose tests share compiled kernels: those of a single case stay
together. What only the second has kernels for runs there. Tests marked `interpreted`, which show no
other code than those beside them, run on neither.
"""

from __future__ import annotations

import os
import re
import zlib
from collections import defaultdict
from typing import Any

import pytest

EMULATORS = ("emu80", "emu90")
ONLY_ON = {"test_hopper.py": "emu90", "test_replay.py": "emu90"}
Places = dict[Any, list[str]]


def colour(item: Any, places: Places) -> int:
    """Return 0 or 1; `places` are the values of each list that cases before this one had."""
    name = f"{item.path.name}::{item.originalname}"
    total = zlib.crc32(item.path.name.encode())
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0].split(",") if isinstance(mark.args[0], str) else mark.args[0]
        value = repr([item.callspec.params[x.strip()] for x in names])
        had = places[name, tuple(names)]
        if value not in had:
            had.append(value)
        total += had.index(value)
    return total % 2


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Leave the cases of the other emulator out."""
    own = os.environ["SPCL_KERNEL_DRIVER"]
    left_out = {"breadth", "interpreted"}
    places: Places = defaultdict(list)
    here = []
    for item in items:
        if left_out & set(item.keywords):
            continue
        emulator = EMULATORS[colour(item, places)]
        if ONLY_ON.get(item.path.name, emulator) == own:
            here.append(item)
    kept = {id(item) for item in here}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = here


def leave_out_assembler(_backend: Any = None, stages: Any = None, *_how: Any) -> tuple[str, str]:
    """Let Triton stop at PTX, which is what the emulators execute; gates.py assembles."""
    if stages is not None and "cubin" in stages:  # not AMD's
        stages["cubin"] = lambda ptx, _metadata: ptx.encode()
    return "ptx", "ptx"


def resources(ptx: bytes) -> dict[str, int]:
    """Return what is asked of machine code; registers where a program takes all it may have."""
    given = re.search(rb"\.maxnreg (\d+)", ptx)
    registers = int(given[1]) if given else 0
    return {"regs": registers, "spill_st": 0, "spill_ld": 0, "static_smem": 0}


@pytest.hookimpl(trylast=True)  # gpucheck.plugin comes before Triton is imported
def pytest_configure() -> None:
    """Compile to what is executed."""
    from gpucheck import emu_driver
    from triton import knobs

    knobs.runtime.add_stages_inspection_hook = leave_out_assembler
    emu_driver.cubin_stats = resources
