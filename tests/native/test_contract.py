"""What surrounds the native kernels: dispatch, errors, compile, fork, interrupts, other CPUs."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import spcl_fast
from spcl_fast import SelfPacedContrastiveLoss, native, pair_lse, positive_pair_loss
from spcl_fast.operands import Pairs
from spcl_fast.ops._impl import resolve
from spcl_fast.testing import make_embeddings, make_labels

ROOT = Path(spcl_fast.__file__).parents[1]
CPU = torch.device("cpu")


def run(program: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout


def test_auto_takes_native_where_it_can() -> None:
    assert resolve("auto", CPU) == "native"
    assert resolve("auto", CPU, torch.bfloat16) == "native"
    assert resolve("auto", CPU, torch.float64) == "chunked"
    assert resolve("auto", torch.device("meta")) == "chunked"
    with pytest.raises(TypeError, match="must be float32, bfloat16 or float16"):
        pair_lse(torch.ones(3, 2, dtype=torch.float64), 0.1, impl="native")
    with pytest.raises(RuntimeError, match="must be given tensors on the CPU"):
        resolve("native", torch.device("meta"))


def test_without_extension_auto_is_chunked_and_native_raises() -> None:
    program = """
import sys, importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "spcl_fast._C" else find(name, *a)
import torch, spcl_fast
from spcl_fast.ops._impl import resolve
assert resolve("auto", torch.device("cpu")) == "chunked"
spcl_fast.pair_lse(torch.ones(3, 2), 0.1)
try:
    spcl_fast.pair_lse(torch.ones(3, 2), 0.1, impl="native")
except RuntimeError as error:
    print(error)
"""
    assert "needs the extension spcl_fast._C" in run(program)


def op_calls() -> dict[str, tuple[Any, ...]]:
    z, refs = make_embeddings(200, 4), make_embeddings(20, 4, seed=1)
    labels, ref_labels = make_labels(200, 3), make_labels(20, 3, seed=1)
    row, col, tau = torch.ones(200), torch.ones(20), torch.tensor(0.1)
    pairs = (z, row, labels, refs, ref_labels, tau, torch.tensor(3.0), False, None)
    square = (z, row, labels, None, None, tau, torch.tensor(3.0), True, 1.0)
    return {
        "pair_lse_fwd": (z, refs, tau, 0),
        "pair_lse_bwd": (z, refs, row, col, row, col, tau, torch.zeros(0), [], [], [], False, True),
        "positive_pair_loss_fwd": pairs,
        "positive_pair_loss_bwd": (row, *square, True, False),
    }


@pytest.mark.parametrize("name", list(op_calls()))
def test_opcheck(name: str) -> None:
    op = getattr(torch.ops.spcl_fast, f"{name}_native").default
    torch.library.opcheck(op, op_calls()[name])


def test_opcheck_with_cached_tiles() -> None:
    # A whole tile, and not a diagonal one: what others leave unwritten is arbitrary, and opcheck
    # compares it.
    size = native.tile_cache.cache_size(144, 144)
    z, row, tau = make_embeddings(144, 4), torch.ones(144), torch.tensor(0.1)
    labels = [make_labels(144, 3)]
    ops = torch.ops.spcl_fast
    torch.library.opcheck(ops.pair_lse_fwd_native.default, (z, z.flip(0), tau, size))
    cache = ops.pair_lse_fwd_native(z, None, tau, size)[2]
    torch.library.opcheck(
        ops.pair_lse_bwd_native.default,
        (z, None, row, None, row, None, tau, cache, labels, [row], [tau], True, False),
    )


def bad_calls() -> dict[str, tuple[str, int, Any, str]]:
    """Return, by name: op, position of the argument, what it is replaced by, message."""
    wide = torch.ones(200, 4, dtype=torch.float64)
    scalar = torch.tensor
    return {
        "dtype": ("pair_lse_fwd", 0, wide, "z must be float32, got Double"),
        "shape": ("pair_lse_fwd", 0, torch.ones(4), r"z must be \(rows, features\)"),
        "features": ("pair_lse_fwd", 1, torch.ones(9, 5), r"refs must be \(M, 4\)"),
        "tau": ("pair_lse_fwd", 2, scalar(-1.0), "tau must be above 0, got -1"),
        "tau shape": ("pair_lse_fwd", 2, torch.ones(2), "tau must be a 0-dim tensor"),
        "tau dtype": ("pair_lse_fwd", 2, scalar(1), "tau must be floating point"),
        "cache": ("pair_lse_fwd", 3, -1, "cache_size must be at least 0"),
        "part": ("pair_lse_fwd", 3, 7, "cache_size must be a multiple of"),
        "lse": ("pair_lse_bwd", 2, torch.ones(3), r"lse must be \(200,\)"),
        "alone": ("pair_lse_bwd", 3, None, "must be given together"),
        "gamma alone": ("pair_lse_bwd", 10, [scalar(1.0)], "got 0, 0 and 1"),
        "labels": ("positive_pair_loss_fwd", 2, torch.ones(3), "labels must be"),
        "no labels": ("positive_pair_loss_fwd", 4, None, "must be given together"),
        "gamma": ("positive_pair_loss_fwd", 6, scalar(0.0), "gamma must be above 0"),
        "window": ("positive_pair_loss_fwd", 8, -1.0, "window must be finite and"),
    }


def test_linear_labels_need_a_square_problem() -> None:
    arguments = list(op_calls()["pair_lse_bwd"])
    arguments[8:11] = [make_labels(200, 3)], [torch.ones(200)], [torch.tensor(1.0)]
    with pytest.raises(ValueError, match="labels must be empty with refs, got 1"):
        torch.ops.spcl_fast.pair_lse_bwd_native(*arguments)


# A dtype too is a ValueError: the stable ABI has no TypeError.
@pytest.mark.parametrize("name", list(bad_calls()))
def test_the_kernels_check_their_arguments(name: str) -> None:
    op, position, value, message = bad_calls()[name]
    arguments = list(op_calls()[op])
    arguments[position] = value
    with pytest.raises(ValueError, match=message):
        getattr(torch.ops.spcl_fast, f"{op}_native")(*arguments)


# Half precision is computed in float32, under autocast too.
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    z = make_embeddings(200, 16, dtype=dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lse = pair_lse(z, 0.1, impl="native")
    lse.sum().backward()
    assert z.grad is not None
    assert (lse.dtype, z.grad.dtype) == (torch.float32, dtype)
    wide = z.detach().float().requires_grad_()
    expected = pair_lse(wide, 0.1, impl="native")
    expected.sum().backward()
    assert torch.equal(lse, expected)
    assert wide.grad is not None
    assert torch.equal(z.grad, wide.grad.to(dtype))


def test_tensor_pace_equals_a_number() -> None:
    z, labels = make_embeddings(60, 8), make_labels(60, 4)
    lse = pair_lse(z, 0.1)
    options: dict[str, Any] = {"tau": 0.1, "mode": "linear", "impl": "native"}
    number = positive_pair_loss(z, lse, labels, gamma=3.0, **options)
    tensor = positive_pair_loss(z, lse, labels, gamma=torch.tensor(3.0), **options)
    assert torch.equal(number.loss, tensor.loss)


@pytest.mark.parametrize("gamma", [math.inf, 4.0])
def test_fullgraph(gamma: float) -> None:
    loss = SelfPacedContrastiveLoss(impl="native", learnable_tau=True)
    labels = make_labels(60, 5, unknown_share=0.1)

    def function(z: Tensor) -> Tensor:
        return loss(z, labels, gamma).loss  # type: ignore[no-any-return]

    results = []
    torch.compiler.reset()  # else the pace of the first case becomes a symbol in the second
    # aot_eager traces forward and backward as the default backend does, without its C++ compiler
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        z = make_embeddings(60, 8).requires_grad_()
        value = call(z)
        value.backward()
        results.append((value.detach(), z.grad))
    torch.testing.assert_close(results[1], results[0])


def test_nothing_is_cached_without_a_backward() -> None:
    z = make_embeddings(300, 8).requires_grad_()
    lse = native.pair_lse_fwd(Pairs(z.detach(), None, 0.1), has_backward=False)
    assert lse.cache is not None
    assert lse.cache.numel() == 0
    with torch.no_grad():
        assert pair_lse(z, 0.1, impl="native").grad_fn is None


# 700 rows are 8 blocks of 96: 36 tiles, of which 28 fit into 1 MiB.
@pytest.mark.parametrize(("mib", "num_tiles"), [(0, 0), (1, 28), (256, 36)])
def test_cache_size(mib: int, num_tiles: int) -> None:
    native.set_tile_cache_mib(mib)
    assert native.tile_cache.cache_size(700, None) == num_tiles * 96 * 96
    with pytest.raises(ValueError, match="mib must be at least 0"):
        native.set_tile_cache_mib(-1)


# 3100 rows cache 20 MB, which the process holds until it is told to let go.
@pytest.mark.skipif(
    torch.__version__.startswith("2.10.") or sys.platform == "win32",
    reason="needs PyTorch 2.11, to know that it is freed, and an extension that finds it there",
)
def test_the_cache_is_held_and_released() -> None:
    z, tau = make_embeddings(3100, 4), torch.tensor(0.1)
    size = native.tile_cache.cache_size(3100, None)
    forward = torch.ops.spcl_fast.pair_lse_fwd_native
    native.release_kept_memory()
    first = forward(z, None, tau, size)[2].data_ptr()
    both = [forward(z, None, tau, size)[2] for _ in range(2)]
    assert both[0].data_ptr() == first
    assert both[1].data_ptr() != first
    del both
    native.release_kept_memory()


# Every instruction set that this CPU can run gives the same results but for rounding.
@pytest.mark.parametrize("capability", [pytest.param("default", marks=pytest.mark.slow), "avx2"])
def test_other_instruction_sets(capability: str) -> None:
    program = """
import torch
from spcl_fast import native, pair_lse, positive_pair_loss
from spcl_fast.testing import make_embeddings, make_labels
z, labels = make_embeddings(300, 37), make_labels(300, 4)
for tau in (0.1, 0.001):
    gradients = []
    for impl in ("native", "reference"):
        x = z.clone().requires_grad_()
        lse = pair_lse(x, tau, impl=impl)
        out = positive_pair_loss(x, lse, labels, tau=tau, gamma=4.0, mode="linear", impl=impl)
        (lse.sum() + out.loss.sum()).backward()
        gradients.append(x.grad)
    error = (gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max()
    assert error < 1e-4, (tau, error)
print(native.build_info()["cpu_kernels"])
"""
    kernels = run(program, ATEN_CPU_CAPABILITY=capability).strip()
    assert kernels in {"default": {"baseline"}, "avx2": {"AVX2", "baseline"}}[capability]


def test_runs_in_a_forked_worker() -> None:
    program = """
import torch
from torch.utils.data import DataLoader
from spcl_fast import pair_lse
torch.set_num_threads(2)
class Losses(torch.utils.data.Dataset):
    def __len__(self): return 2
    def __getitem__(self, i): return pair_lse(torch.eye(400)[:, :8] + i, 0.5, impl="native")
expected = Losses()[1]
for batch in DataLoader(Losses(), batch_size=2, num_workers=1, multiprocessing_context="fork"):
    assert torch.equal(batch[1], expected)
print("done")
"""
    assert run(program).strip() == "done"


# About a minute of work, interrupted after a quarter of a second, in the forward and the backward.
INTERRUPTED = """
import signal, torch
from spcl_fast import native, pair_lse
from spcl_fast.operands import Lse, Pairs
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is born deaf to it
native.set_tile_cache_mib(0)
z = torch.nn.functional.normalize(torch.randn(3000, 64)).requires_grad_()
forward = lambda: pair_lse(z, 0.1, impl="native")
lse = forward()
z.data, ones = torch.nn.functional.normalize(torch.randn(150000, 64)), torch.ones(150000)
pairs, lse = Pairs(z.detach(), None, 0.1), Lse(ones, None, torch.zeros(0))
backward = lambda: native.pair_lse_bwd(pairs, lse, ones, None, needs_z=True, needs_refs=False)
for threads in (1, 2):
    torch.set_num_threads(threads)
    for work in (forward, backward):
        print("ready", flush=True)
        try:
            work()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
"""


def test_ctrl_c() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(4):
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.25)
        process.send_signal(signal.SIGINT)
        start = time.perf_counter()
        assert process.stdout.readline() == "interrupted\n"
        assert time.perf_counter() - start < 3  # a second, on a busy machine
    assert process.wait(timeout=20) == 0
