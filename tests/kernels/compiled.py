"""What the compiler makes of every kernel, and the limits that this must keep.

`cases()` calls the launchers on CPU tensors, with launches recorded instead of made: every kernel
is compiled as a call would have it, with the configuration of the target and with sizes that are
multiples of 16 or not. The limits are in compiled_limits.txt, a line a case and target.

    python -m tests.kernels.compiled RESULTS.json ...

writes that file from results without limits (of `measured()`), the worst of all where there are
several; see docs/kernels.md.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from spcl_fast.kernels import _configs
from spcl_fast.kernels import pair_lse as pair_lse_module
from spcl_fast.kernels.pair_lse import pair_lse_bwd, pair_lse_fwd
from spcl_fast.kernels.positive_pair_histogram import positive_pair_histogram
from spcl_fast.kernels.positive_pair_loss import positive_pair_loss_bwd, positive_pair_loss_fwd
from spcl_fast.operands import Label, Lse, Pairs

LIMITS = Path(__file__).parent / "compiled_limits.txt"
COLUMNS = {"regs": "max_regs", "spills": "max_spills", "shared": "max_shared"}
COLUMNS |= {"occupancy": "min_occupancy"}
# What `pick` sees on a target; AMD has the tables of sm_80.
ARCHITECTURES = {"sm_80": 80, "sm_90": 90, "sm_100": 100, "gfx942": 80}
FLOAT32 = {"ieee": "highest", "tf32x3": "high", "tf32": "medium"}
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Their code is the same for all dtypes and features.
PLAIN = ("merge_parts", "row_weights", "interval")
# So many that no program has a single tile, and that no row is split among programs.
NUM_ROWS = 32768
NUM_WIDE_ROWS = 1024


@dataclass(frozen=True)
class Rows:
    """What the launchers are called with."""

    dtype: str  # as in the tables of configurations
    dim: int
    is_ragged: bool = False  # sizes are no multiples of 16, and tau and gamma lie in memory
    has_refs: bool = False

    @property
    def title(self) -> str:
        words = [self.dtype.split()[-1], f"D={self.dim}"]
        return " ".join(words + ["ragged"] * self.is_ragged + ["refs"] * self.has_refs)

    def scalar(self, value: float) -> float | Tensor:
        return torch.tensor(value) if self.is_ragged else value

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        num_rows = (NUM_WIDE_ROWS if self.dim > 256 else NUM_ROWS) + 3 * self.is_ragged
        z = torch.zeros(num_rows, self.dim, dtype=HALF.get(self.dtype, torch.float32))
        return z, torch.zeros_like(z[: num_rows // 2]) if self.has_refs else None


Call = Callable[[Rows], object]
Launch = tuple[Any, list[Any], dict[str, Any]]


def forward(rows: Rows) -> None:
    z, refs = rows.tensors()
    pair_lse_fwd(Pairs(z, refs, rows.scalar(0.07)), has_backward=True)


def backward_by_rows(rows: Rows, by_pairs: bool = False) -> None:
    z, refs = rows.tensors()
    lse = torch.zeros(len(z))
    lse_refs = None if refs is None else torch.zeros(len(refs))
    saved = (Pairs(z, refs, rows.scalar(0.07)), Lse(lse, lse_refs), lse, lse_refs)
    with mock.patch.object(pair_lse_module, "adds_atomically", return_value=by_pairs):
        pair_lse_bwd(*saved, needs_z=True, needs_refs=rows.has_refs)


def backward_by_pairs(rows: Rows) -> None:
    backward_by_rows(rows, by_pairs=True)


def positive_pairs(rows: Rows) -> None:
    z, refs = rows.tensors()
    lse, labels = torch.zeros(len(z)), torch.arange(len(z))
    ref_labels = None if refs is None else labels[: len(refs)]
    mode: Any = "hard" if rows.is_ragged else "linear"
    label = Label(labels, rows.scalar(3.0), None, ref_labels)
    given = (Pairs(z, refs, rows.scalar(0.07)), lse, label, mode)
    positive_pair_loss_fwd(*given)
    positive_pair_loss_bwd(lse, *given, needs_z=True, needs_refs=rows.has_refs)


def histogram(rows: Rows) -> None:
    z, _ = rows.tensors()
    pairs, label = Pairs(z, None, rows.scalar(0.07)), Label(torch.arange(len(z)))
    positive_pair_histogram(pairs, torch.zeros(len(z)), label, upper=rows.scalar(12.0), bins=1024)


BACKWARDS = (backward_by_rows, backward_by_pairs)
CALLS: tuple[Call, ...] = (forward, *BACKWARDS, positive_pairs, histogram)
DEFAULT = (forward, backward_by_rows, positive_pairs)
# The sizes of the tables of configurations, where each dtype differs; float16 has those of
# bfloat16, and only float32 at "highest" precision goes by pairs where nobody asks for it.
COMMON: list[tuple[Rows, tuple[Call, ...]]] = [
    *((Rows(dtype, 128), CALLS) for dtype in ("bf16", "fp32 tf32")),
    *((Rows(dtype, dim), CALLS[:-1]) for dtype in ("bf16", "fp32 tf32") for dim in (64, 256)),
    (Rows("fp16", 128), DEFAULT),
    *((Rows("fp32 ieee", dim), CALLS[:-1]) for dim in (64, 128)),
    (Rows("fp32 ieee", 256), BACKWARDS),
    # Without a backward by pairs.
    *((Rows("fp32 tf32x3", dim), DEFAULT) for dim in (64, 128)),
    (Rows("fp32 tf32x3", 256), (backward_by_rows,)),
    # Read 8 and 16 bytes at a time, and one feature at a time.
    (Rows("bf16", 100, is_ragged=True), CALLS),
    (Rows("fp32 tf32", 100, is_ragged=True), CALLS[:-1]),
    (Rows("fp32 ieee", 100, is_ragged=True), (backward_by_pairs,)),
    (Rows("fp32 tf32x3", 100, is_ragged=True), (backward_by_rows,)),
    *((Rows(dtype, 101, is_ragged=True), BACKWARDS) for dtype in ("bf16", "fp32 tf32")),
    (Rows("bf16", 128, has_refs=True), CALLS[:-1]),
    *((Rows(dtype, 512), (forward, backward_by_rows)) for dtype in ("bf16", "fp32 tf32")),
]
PROBLEMS = {
    "sm_80": COMMON,
    "sm_90": COMMON,
    # What else than code for sm_90 and sm_80 the compiler makes: one size tells.
    "sm_100": [(Rows("bf16", 128), CALLS), (Rows("fp32 tf32", 128), (forward, backward_by_rows))],
    "gfx942": [(Rows("bf16", 128), CALLS), (Rows("fp32 ieee", 64), (forward, backward_by_rows))],
}
# Sums shifted by their maxima need more registers: tried where those are scarce.
SHIFTED = [Rows(dtype, dim) for dtype in ("bf16", "fp32 tf32") for dim in (128, 256)]


def launches(call: Call, rows: Rows, architecture: int) -> list[Launch]:
    """Return kernel, arguments and constants of all launches of a call on an architecture."""
    made: list[Launch] = []

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> None:
        made.append((kernel, [_argument(arg) for arg in args], constants))

    before = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, before)
        torch.set_float32_matmul_precision(FLOAT32.get(rows.dtype.split()[-1], before))
        patch = mock.patch.object
        stack.enter_context(patch(JITFunction, "run", record))
        stack.enter_context(patch(_configs, "architecture", return_value=architecture))
        call(rows)
    return made


def _argument(arg: Any) -> Any:
    """Return what specialises as `arg` but holds no memory: a dtype is an aligned pointer."""
    if not isinstance(arg, Tensor):
        return arg
    return torch.empty(2, dtype=arg.dtype)[1:] if arg.data_ptr() % 16 else arg.dtype


def title(kernel: Any, rows: Rows, constants: Mapping[str, Any]) -> str:
    """Return the name of a case."""
    name = kernel.__name__.removesuffix("_kernel").removeprefix("_")
    words = [name, "ragged" * rows.is_ragged if name in PLAIN else rows.title]
    words.append("shifted" if constants.get("IS_BOUNDED") is False else "")
    words.append("triangular" if constants.get("IS_TRIANGULAR") else "")
    return " ".join(filter(None, words))


def measured() -> list[dict[str, Any]]:
    """Return the cases without limits."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for target, problems in PROBLEMS.items():
        for rows, calls in problems:
            for call in calls:
                for kernel, args, constants in launches(call, rows, ARCHITECTURES[target]):
                    if constants.get("IS_BOUNDED") is False and rows not in SHIFTED:
                        continue
                    name = title(kernel, rows, constants)
                    case = {"name": name, "kernel": kernel, "args": args, "meta": constants}
                    found.setdefault((name, target), case | {"targets": [target]})
    return list(found.values())


def cases() -> list[dict[str, Any]]:
    """Return the cases with their limits.

    Raises:
        ValueError: compiled_limits.txt has no line for a case, or one for none.
    """
    limits = {(name, target): values for name, target, values in read_limits()}
    found = {(case["name"], case["targets"][0]): case for case in measured()}
    if found.keys() != limits.keys():
        raise ValueError(f"{LIMITS.name} must have all cases, got {found.keys() ^ limits.keys()}")
    return [case | limits[key] for key, case in found.items()]


def read_limits() -> Iterator[tuple[str, str, dict[str, float]]]:
    """Yield name, target and limits of every line of compiled_limits.txt."""
    for line in LIMITS.read_text(encoding="utf-8").splitlines()[1:]:
        name, target, *values = (text.strip() for text in line.split("|"))
        texts = zip(COLUMNS.values(), values, strict=True)
        yield name, target, {limit: float(text) for limit, text in texts if text != "-"}


def loosest(rows: list[dict[str, Any]]) -> list[str]:
    """Return the cells of a line: the worst of several results, rounded outwards."""

    def up(column: str, step: int) -> str:
        return str(math.ceil(max(row[column] for row in rows) / step) * step)

    spills = up("spills", 1)
    if spills != "0":  # other versions will spill others
        spills = up("spills", 10)
    occupancies = [row["occupancy"] for row in rows]
    least = "-" if None in occupancies else f"{math.floor(100 * min(occupancies)) / 100:.2f}"
    # registers are given out by eights
    return [up("regs", 8), spills, up("shared", 1024), least]


def main() -> None:
    results = [json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:]]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        for row in result["rows"]:
            found.setdefault((row["name"], row["target"]), []).append(row)
    lines = [f"{'case':44s} | target | regs | spills | shared | occupancy"]
    for (name, target), rows in sorted(found.items()):
        cells = zip(loosest(rows), (4, 6, 6, 9), strict=True)
        columns = " | ".join(text.rjust(width) for text, width in cells)
        lines.append(f"{name:44s} | {target:6s} | {columns}")
    LIMITS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
