"""What the compiler makes of every kernel, and the limits that this must keep.

`cases()` calls the launchers on CPU tensors, with launches recorded instead of made: every kernel
is compiled as a call would have it, with the configuration of the target and with sizes that are
multiples of 16 or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from spcl_fast.kernels import _class_sums, _configs, _order
from spcl_fast.kernels._similarities import PlanePairs
from spcl_fast.kernels.contrastive_terms import contrastive_terms_bwd, contrastive_terms_fwd
from spcl_fast.kernels.hopper import _choice
from spcl_fast.kernels.infonce_terms import infonce_terms_bwd, infonce_terms_fwd
from spcl_fast.kernels.pair_lse import pair_lse_bwd, pair_lse_fwd
from spcl_fast.kernels.positive_pair_histogram import positive_pair_histogram
from spcl_fast.kernels.positive_pair_loss import positive_pair_loss_bwd, positive_pair_loss_fwd
from spcl_fast.operands import Label, Lse, Pairs
from spcl_fast.pair_weights import Mode

_NVIDIA = ("sm_80", "sm_90", "sm_100")
LIMITS = {
    "max_spills": dict.fromkeys(_NVIDIA, 0),
    # What sm_80 is given is also what sm_86, sm_89 and sm_120 are.
    "max_shared": {"sm_80": 99 * 1024, "sm_90": 227 * 1024},
    # Above 0: that of the others fits too.
    "min_occupancy": dict.fromkeys(_NVIDIA, 0.06),
    # No instruction that the assembler is known to miscompile; wgmma in flight beside each other.
    "max_hazards": dict.fromkeys(_NVIDIA, 0),
    "no_serialized": True,
}
# What Triton 3.6 spills, and 3.8 does not.
SPILLS = {
    ("row_gradient bf16 D=100 ragged", "sm_90"): 30,
    ("pair_sums bf16 D=100 ragged", "sm_90"): 10,
    ("row_gradient 2 planes D=256", "sm_80"): 70,
    ("planes fp16", "sm_80"): 10,
    ("pair_sums bf16 D=272", "sm_80"): 2,  # none at 512 features
    ("h_panel bf16 D=272", "sm_80"): 10,
    ("h_panel fp16 D=272", "sm_80"): 10,
}
# What `pick` sees on a target; AMD has the tables of sm_80.
ARCHITECTURES = {"sm_80": 80, "sm_90": 90, "sm_100": 100, "gfx942": 80}
# Their code is the same for all dtypes and features.
PLAIN = ("merge_parts", "row_weights", "term_weights", "reduce_label", "count", "interval")
PLAIN += ("diagonal_losses", "diagonal_weights", "reduce_diagonal", "add_diagonal")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
DTYPES |= {"2 planes": torch.float32, "3 planes": torch.float32}
PRECISIONS = {"2 planes": "high", "3 planes": "highest"}
NUM_ROWS = 288  # of test_several_tiles, so that an emulator and this compile the same kernels


@dataclass(frozen=True)
class Rows:
    """What the launchers are called with."""

    dtype: str
    dim: int
    is_ragged: bool = False  # sizes are no multiples of 16, and tau and gamma lie in memory
    has_refs: bool = False

    @property
    def title(self) -> str:
        words = [self.dtype, f"D={self.dim}"]
        return " ".join(words + ["ragged"] * self.is_ragged + ["refs"] * self.has_refs)

    def scalar(self, value: float) -> float | Tensor:
        return torch.tensor(value) if self.is_ragged else value

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        z = torch.zeros(NUM_ROWS, self.dim, dtype=DTYPES[self.dtype])
        refs = torch.zeros_like(z) if self.has_refs else None
        return (z[3:], refs) if self.is_ragged else (z, refs)


Call = Callable[[Rows], object]
Launch = tuple[Any, list[Any], dict[str, Any]]


def forward(rows: Rows) -> None:
    z, refs = rows.tensors()
    pair_lse_fwd(Pairs(z, refs, rows.scalar(0.07)), has_backward=True)


def backward(rows: Rows) -> None:
    z, refs = rows.tensors()
    lse = torch.zeros(len(z))
    lse_refs = None if refs is None else torch.zeros(len(refs))
    saved = (Pairs(z, refs, rows.scalar(0.07)), Lse(lse, lse_refs), lse, lse_refs)
    pair_lse_bwd(*saved, needs_z=True, needs_refs=rows.has_refs)


def without_hopper(call: Call) -> Call:
    """Return a call by the plain kernels, which also serve where Gluon is missing."""

    def run(rows: Rows) -> None:
        with mock.patch.object(_choice, "ARCHITECTURE", None):
            call(rows)

    return run


def label_of(rows: Rows, gamma: float) -> Label:
    labels = torch.arange(NUM_ROWS)[3 * rows.is_ragged :]
    given = rows.scalar(gamma) if gamma < math.inf else gamma
    return Label(labels, given, None, labels if rows.has_refs else None)


def positive_pairs(rows: Rows, gamma: float = 3.0) -> None:
    z, refs = rows.tensors()
    label, lse = label_of(rows, gamma), torch.zeros(len(z))
    mode: Mode = "hard" if rows.is_ragged else "linear"
    given = (Pairs(z, refs, rows.scalar(0.07)), lse, label, mode)
    positive_pair_loss_fwd(*given)
    positive_pair_loss_bwd(lse, *given, needs_z=True, needs_refs=rows.has_refs)


def classes(rows: Rows) -> None:
    """Positive pairs of weight 1."""
    positive_pairs(rows, math.inf)


def sums_of_blocks(rows: Rows) -> None:
    """The same with sums of blocks, in a launch of their own and in one that merges parts."""
    with mock.patch.object(_class_sums, "_FEW", 0):
        classes(rows)
        terms(rows, math.inf)


def orders(rows: Rows) -> None:
    """Labels sorted, with a window or without; those that are counted are in `positive_pairs`."""
    labels = torch.zeros(NUM_ROWS)
    _order.order_of(labels, labels if rows.has_refs else None, 0.1)
    with mock.patch.object(_order, "MAX_COUNTED", 0):
        _order.order_of(labels.int(), None, None)
        _order.order_of(labels, None, 0.1)


def terms(rows: Rows, gamma: float = 3.0) -> None:
    """From rows, and a bank if there are references, to scalars and back."""
    z, refs = rows.tensors()
    pairs, labels = Pairs(z, refs, rows.scalar(0.07)), [label_of(rows, gamma)]
    out, state = contrastive_terms_fwd(
        pairs, labels, [1.0], "linear", correct_grad=False, has_backward=True
    )
    contrastive_terms_bwd(pairs, labels, out.lse, state, out.loss, None, "linear")


def infonce(rows: Rows) -> None:
    z, refs = rows.tensors()
    pairs = Pairs(z, refs, rows.scalar(0.07))
    out, state = infonce_terms_fwd(pairs, symmetric=True, has_backward=True)
    given = pairs, out.lse, state, out.loss
    infonce_terms_bwd(*given, symmetric=True, needs_z=True, needs_refs=True)


def histogram(rows: Rows) -> None:
    z, _ = rows.tensors()
    pairs, label = Pairs(z, None, rows.scalar(0.07)), Label(torch.arange(len(z)))
    positive_pair_histogram(pairs, torch.zeros(len(z)), label, upper=rows.scalar(12.0), bins=1024)


STEP: tuple[Call, ...] = (forward, backward, positive_pairs)
SQUARE: tuple[Call, ...] = (*STEP, terms, classes, sums_of_blocks, orders)
# The longest rows of each entry of the tables of configurations, of wide rows the first that have
# several steps and are padded; float16 has those of bfloat16.
COMMON: list[tuple[Rows, tuple[Call, ...]]] = [
    (Rows("bf16", 128), SQUARE),
    (Rows("bf16", 64), (forward, backward)),
    (Rows("bf16", 256), (*STEP, histogram)),
    (Rows("bf16", 272), STEP),
    *((Rows("2 planes", dim), STEP) for dim in (128, 272)),
    (Rows("2 planes", 256), (*STEP, histogram)),
    (Rows("3 planes", 128), (*STEP, histogram, classes, sums_of_blocks)),
    (Rows("3 planes", 272), STEP),
    (Rows("fp16", 272), (backward,)),
    (Rows("bf16", 100, is_ragged=True), (forward, backward)),
    (Rows("bf16", 128, has_refs=True), (forward, backward, terms, infonce, sums_of_blocks)),
]
PROBLEMS = {
    "sm_80": COMMON,
    "sm_90": [
        *COMMON,
        *((rows, (without_hopper(call),)) for rows, calls in COMMON for call in calls[:2]),
        *((Rows(f"{planes} planes", 64), (forward, backward)) for planes in (2, 3)),
        # What takes most registers.
        (Rows("3 planes", 128, has_refs=True), (forward,)),
    ],
    # What else than code for sm_90 and sm_80 the compiler makes: few sizes tell.
    "sm_100": [(Rows(dtype, 128), (forward, backward)) for dtype in ("bf16", "2 planes")],
    "gfx942": [(Rows("bf16", 128), SQUARE)],
}


def launches(call: Call, rows: Rows, architecture: int) -> list[Launch]:
    """Return kernel, arguments and constants of all launches of a call on an architecture."""
    made: list[Launch] = []

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> None:
        made.append((kernel, [_argument(arg) for arg in args], constants))

    before = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, before)
        torch.set_float32_matmul_precision(PRECISIONS.get(rows.dtype, before))
        patch = mock.patch.object
        stack.enter_context(patch(JITFunction, "run", record))
        stack.enter_context(patch(_configs, "architecture", return_value=architecture))
        # So that no program has a single tile, and no row is split among programs.
        stack.enter_context(patch(PlanePairs, "num_programs", 1))
        stack.enter_context(patch(_choice, "MIN_PAIRS", 1))
        call(rows)
    return made


def _argument(arg: Any) -> Any:
    """Return what specialises as `arg` but holds no memory: a dtype is an aligned pointer."""
    if hasattr(arg, "block_shape"):
        return "desc", arg.base.dtype, arg.block_shape, arg.layout
    if not isinstance(arg, Tensor):
        return arg
    return torch.empty(2, dtype=arg.dtype)[1:] if arg.data_ptr() % 16 else arg.dtype


def title(kernel: Any, rows: Rows, args: list[Any], constants: Mapping[str, Any]) -> str:
    """Return the name of a case."""
    given = dict(zip(kernel.arg_names, args, strict=False))
    name = kernel.__name__.removesuffix("_kernel").removeprefix("_")
    words = [name] if name in PLAIN else [name, rows.title]
    if name == "planes":
        words = [name, rows.dtype, "copied" * constants["IS_COPIED"]]
        words.append("and order" if constants["ORDERS"] else "")
    words.append("window" if constants.get("HAS_WINDOW") else "")
    words.append("even" if constants.get("SIDES") == 2 else "")
    has_sums = name.startswith("class_") and given["sums_ptr"] is not None
    words.append("blocks" if has_sums or constants.get("CLASS_BLOCK") else "")
    is_triangular = constants.get("IS_TRIANGULAR")
    words.append("triangular" if name == "merge_parts" and is_triangular else "")
    words.append("bank" if constants.get("EXCLUDES_SELF") and is_triangular is False else "")
    words.append("two sides" if constants.get("IS_SQUARE") is False else "")
    return " ".join(filter(None, words))


def cases() -> list[dict[str, Any]]:
    """Return all kernels as some call launches them, with their limits."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for target, problems in PROBLEMS.items():
        for rows, calls in problems:
            for call in calls:
                for kernel, args, constants in launches(call, rows, ARCHITECTURES[target]):
                    name = title(kernel, rows, args, constants)
                    case = {"name": name, "kernel": kernel, "args": args, "meta": constants}
                    case |= {"targets": [target]} | LIMITS
                    if (name, target) in SPILLS:
                        case["max_spills"] = SPILLS[name, target]
                    found.setdefault((name, target), case)
    return list(found.values())
