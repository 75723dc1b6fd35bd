"""The inner loops of the products, as the compiler wrote them: loads, broadcasts and multiply-adds.

Anything else there (a spilled sum, an address that is computed anew, a broadcast by addition and
shuffle) takes the ports that multiply, and halves the speed without changing a result.
"""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

import pytest

PRODUCTS = ("dot_products", "add_product")
VECTORS = (1, 2, 3)
# dot_products reads strips of panels; add_product reads h along its rows and along its columns.
FORMS = 3
LOAD = r"vmov(up|ap|dqu|dqa)\w* [xyz]mm\d+,\w+ PTR \["
BROADCAST = r"vbroadcastss [xyz]mm\d+,DWORD PTR \["
EMBEDDED = r"DWORD BCST \[|\{1to16\}"  # in a multiply-add
MULTIPLY_ADD = r"vfmadd\d+ps [xyz]mm\d+,[xyz]mm\d+,"
COUNTER = r"(add|sub|cmp|inc|dec|lea|test|j\w+) "  # no operand in memory


class Instruction(NamedTuple):
    address: int
    text: str


class Loop(NamedTuple):
    function: str
    body: list[Instruction]


def functions(listing: str) -> Iterator[tuple[str, list[Instruction]]]:
    """Return the functions of objdump's listing by name."""
    for part in re.split(r"\n(?=[0-9a-f]+ <)", listing):
        head = re.match(r"[0-9a-f]+ <(.*)>:\n", part)
        if head is None:
            continue
        lines = re.findall(r"^\s+([0-9a-f]+):\t(.*?)\s*$", part, re.MULTILINE)
        yield head[1], [Instruction(int(at, 16), re.sub(r"\s+", " ", text)) for at, text in lines]


def inner_loops(listing: str) -> list[Loop]:
    """Return the loops without a loop or a branch in them."""
    loops = []
    for function, body in functions(listing):
        start = 0  # behind the last jump
        for i, instruction in enumerate(body):
            jump = re.match(r"j\w+ ([0-9a-f]+)", instruction.text)
            if jump is None:
                continue
            target = int(jump[1], 16)
            if body[start].address <= target <= instruction.address:
                inside = [x for x in body[start : i + 1] if x.address >= target]
                loops.append(Loop(function, inside))
            start = i + 1
    return loops


@pytest.fixture(scope="module")
def listing() -> str:
    """The disassembly of the extension as it was built."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"needs instructions of x86-64, got {platform.machine()}")
    if shutil.which("objdump") is None:
        pytest.skip("needs objdump")
    spec = importlib.util.find_spec("spcl_fast._C")
    assert spec is not None
    command = ["objdump", "--disassemble", "--no-show-raw-insn", "-M", "intel", str(spec.origin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "__asan" in text:
        pytest.skip("the build checks memory at every access")
    return text


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_nothing_else_is_in_the_inner_loops(listing: str, isa: str) -> None:
    register = {"avx2": "ymm", "avx512": "zmm"}[isa]
    loops = [
        loop
        for loop in inner_loops(listing)
        if f"4spcl{len(isa)}{isa}" in loop.function
        and any(name in loop.function for name in PRODUCTS)
        and any(re.match(MULTIPLY_ADD, x.text) for x in loop.body)
    ]
    assert len(loops) == FORMS * len(VECTORS), [loop.function for loop in loops]
    for loop in loops:
        text = "\n".join(x.text for x in loop.body)
        allowed = (LOAD, BROADCAST, MULTIPLY_ADD)
        rest = [x for x in text.splitlines() if not any(re.match(kind, x) for kind in allowed)]
        assert all(re.match(COUNTER, x) and "[" not in x for x in rest), f"{loop.function}\n{text}"
        assert len(rest) <= 4, f"{loop.function}\n{text}"
        num_broadcasts = len(re.findall(f"{BROADCAST}|{EMBEDDED}", text))
        num_multiply_adds = len(re.findall(MULTIPLY_ADD, text))
        assert num_multiply_adds / max(num_broadcasts, 1) in VECTORS, f"{loop.function}\n{text}"
        assert register in text
