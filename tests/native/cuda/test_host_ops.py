"""The CUDA ops on tensors of the CPU: what is launched on what, between products by PyTorch.

host/host_ops.cpp compiles csrc/cuda/*.cu as they are, with kernels that run on the host. A device
of one multiprocessor has panels of 512 rows: 700 rows take several.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast import reference
from spcl_fast.operands import Label, Pairs
from spcl_fast.testing import (
    assert_within_budget,
    make_embeddings,
    make_labels,
    similarity_rounding,
)

HERE = Path(__file__).resolve().parent
TORCH = Path(torch.__file__).resolve().parent
TAU, GAMMA = 0.07, 12.0
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Several panels with ragged ends; features above 256; both sides of a rectangle.
SIZES = {"square": (700, None, 24), "wide": (97, None, 300), "rectangle": (70, 300, 24)}


@pytest.fixture(scope="module")
def ops(host_build: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    include = [TORCH / "include", TORCH / "include" / "torch" / "csrc" / "api" / "include"]
    flags = ["-fPIC", "-shared", "-Wno-psabi", "-I", str(HERE / "host")]
    flags += [x for folder in include for x in ("-I", str(folder))]
    flags += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    flags += [f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    library = tmp_path_factory.mktemp("host_ops") / "host_ops.so"
    host_build(HERE / "host" / "host_ops.cpp", library, *flags)
    torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    return torch.ops.spcl_fast_cuda_on_host


def rows(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    N, M, D = SIZES[name]
    z = make_embeddings(N, D, dtype=dtype)
    return z, None if M is None else make_embeddings(M, D, dtype=dtype, seed=1)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def upstream(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.linspace(-1, 2, size, dtype=torch.float64).to(dtype)


def leaf(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.detach().to(dtype).requires_grad_()


def expected_lse(z: Tensor, refs: Tensor | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return what the reference in `dtype` makes of the rows, with gradients of weighted sums."""
    z, refs = leaf(z, dtype), leaf(refs, dtype)  # type: ignore[assignment]
    out = reference.pair_lse(z, TAU, refs)
    parts = [out] if isinstance(out, Tensor) else list(out)
    total = torch.cat([x * upstream(len(x), x.dtype) for x in parts]).sum()
    total.backward()  # type: ignore[no-untyped-call]
    values = dict(zip(("lse", "lse_refs"), (x.detach() for x in parts), strict=False))
    gradients = {"dz": z.grad, "drefs": None if refs is None else refs.grad}
    return values | {key: x for key, x in gradients.items() if x is not None}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(SIZES))
def test_pair_lse(ops: Any, name: str, dtype: torch.dtype) -> None:
    z, refs = rows(name, dtype)
    lse, lse_refs, cache = ops.pair_lse_fwd(z, refs, scalar(TAU), 0)
    own = (z, refs, lse, lse_refs if refs is not None else None)
    dlse_refs = None if refs is None else upstream(len(refs))
    last: tuple[Any, ...] = (scalar(TAU), cache, [], [], [], True, True)
    dz, drefs = ops.pair_lse_bwd(*own, upstream(len(z)), dlse_refs, *last)
    actual = {"lse": lse, "lse_refs": lse_refs, "dz": dz, "drefs": drefs}
    truth, eager = expected_lse(z, refs, torch.float64), expected_lse(z, refs, dtype)
    assert truth.keys() == eager.keys()
    for key, value in truth.items():
        rounding = similarity_rounding(1 / TAU) if key in ("lse", "lse_refs", "loss") else 0.0
        assert_within_budget(actual[key], value, eager[key], rounding=rounding, name=key)


def expected_loss(z: Tensor, refs: Tensor | None, dtype: torch.dtype, **options: Any) -> Any:
    z, refs = leaf(z, dtype), leaf(refs, dtype)  # type: ignore[assignment]
    options["lse"] = options["lse"].to(torch.promote_types(dtype, torch.float32))
    pairs = Pairs(z, refs, TAU)
    loss, weight_sum, num_pos = reference.positive_pair_loss(pairs, **options)
    total = (loss * upstream(len(z), loss.dtype)).sum()
    total.backward()  # type: ignore[no-untyped-call]
    out = {"loss": loss.detach(), "weight_sum": weight_sum, "num_pos": num_pos, "dz": z.grad}
    return out | ({} if refs is None else {"drefs": refs.grad})


# Equal labels and windows, both weights; a gamma of inf, which on the device is like any other.
HOW = {
    "linear": ("linear", GAMMA, None),
    "hard": ("hard", GAMMA, None),
    "window": ("linear", GAMMA, 0.1),
    "unit weights": ("linear", float("inf"), None),
    "unit weights, window": ("hard", float("inf"), 0.1),
}


def labels_of(size: int, window: float | None, seed: int) -> Tensor:
    if window is None:
        return make_labels(size, 6, unknown_share=0.1, seed=seed)
    labels = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels[::9], labels[1::17] = -1, torch.nan
    return labels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", list(HOW))
@pytest.mark.parametrize("name", list(SIZES))
def test_positive_pair_loss(ops: Any, name: str, how: str, dtype: torch.dtype) -> None:
    (z, refs), (mode, gamma, window) = rows(name, dtype), HOW[how]
    labels = labels_of(len(z), window, 0)
    ref_labels = None if refs is None else labels_of(len(refs), window, 1)
    # Above every similarity but far enough from gamma for every rounding to agree.
    lse = torch.linspace(15, 24, len(z)) + 0.001
    how_much = (scalar(TAU), scalar(gamma), mode == "hard", window)
    loss, weight_sum, num_pos = ops.positive_pair_loss_fwd(
        z, lse, labels, refs, ref_labels, *how_much
    )
    c = upstream(len(z)) / num_pos.clamp_min(1)
    dz, drefs = ops.positive_pair_loss_bwd(
        c, z, lse, labels, refs, ref_labels, *how_much, True, True
    )
    actual = {"loss": loss, "weight_sum": weight_sum, "num_pos": num_pos, "dz": dz, "drefs": drefs}
    label = Label(labels, gamma, window, ref_labels)
    options: dict[str, Any] = {"lse": lse, "label": label, "mode": mode}
    truth = expected_loss(z, refs, torch.float64, **options)
    eager = expected_loss(z, refs, dtype, **options)
    for key, value in truth.items():
        rounding = similarity_rounding(1 / TAU) if key in ("lse", "lse_refs", "loss") else 0.0
        assert_within_budget(actual[key], value, eager[key], rounding=rounding, name=key)


@pytest.mark.parametrize("dtype", DTYPES)
def test_joined_labels_are_their_own_gradients(ops: Any, dtype: torch.dtype) -> None:
    z, _ = rows("square", dtype)
    lse, _, cache = ops.pair_lse_fwd(z, None, scalar(TAU), 0)
    labels = [labels_of(len(z), None, seed) for seed in (0, 1)]
    c, gamma = [upstream(len(z)) / 50, upstream(len(z)).flip(0) / 50], [scalar(GAMMA), scalar(30)]
    own = (z, None, lse, None, upstream(len(z)), None, scalar(TAU), cache)
    joined, _ = ops.pair_lse_bwd(*own, labels, c, gamma, True, False)
    total = ops.pair_lse_bwd(*own, [], [], [], True, False)[0].double()
    for y, factor, pace in zip(labels, c, gamma, strict=True):
        how = (scalar(TAU), pace, False, None, True, False)
        part, _ = ops.positive_pair_loss_bwd(factor, z, lse, y, None, None, *how)
        total += part.double()
    tolerance = 4 * torch.finfo(dtype).eps * total.abs().max().item()
    torch.testing.assert_close(joined.double(), total, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", list(SIZES))
def test_histogram(ops: Any, name: str) -> None:
    z, refs = rows(name, torch.float32)
    lse, labels = torch.linspace(15, 24, len(z)), labels_of(len(z), None, 0)
    ref_labels = None if refs is None else labels_of(len(refs), None, 1)
    counts = ops.positive_pair_histogram(
        z, lse, labels, refs, ref_labels, scalar(TAU), scalar(30), 64, None
    )
    pairs = Pairs(z.double(), None if refs is None else refs.double(), TAU)
    label = Label(labels, ref_values=ref_labels)
    truth = reference.positive_pair_histogram(pairs, lse, label, upper=30, bins=64)
    assert counts.sum() == truth.sum()
    assert (counts - truth).abs().sum() <= 4  # on the edge of a bin


def test_any_layout_and_bit_for_bit(ops: Any) -> None:
    z, _ = rows("square", torch.float32)
    lse, *_ = ops.pair_lse_fwd(z, None, scalar(TAU), 0)
    again, *_ = ops.pair_lse_fwd(z.T.contiguous().T, None, scalar(TAU).float(), 0)
    assert torch.equal(lse, ops.pair_lse_fwd(z, None, scalar(TAU), 0)[0])
    torch.testing.assert_close(again, lse, rtol=0, atol=1e-5)


@pytest.mark.parametrize("M", [None, 0, 3])
@pytest.mark.parametrize("N", [0, 1])
def test_nothing_to_compare(ops: Any, N: int, M: int | None) -> None:
    z, refs = torch.ones(N, 5), None if M is None else torch.ones(M, 5)
    lse, lse_refs, cache = ops.pair_lse_fwd(z, refs, scalar(1), 0)
    expected = 5 + torch.tensor(float(M or 0)).log()
    assert torch.equal(lse, expected.expand(N))
    assert torch.equal(lse_refs, (5 + torch.tensor(float(N)).log()).expand(M or 0))
    own = (z, refs, lse, lse_refs if M is not None else None, torch.ones(N))
    last: tuple[Any, ...] = (scalar(1), cache, [], [], [], True, True)
    dz, drefs = ops.pair_lse_bwd(*own, None if M is None else torch.ones(M), *last)
    assert dz.shape == z.shape
    assert drefs.shape == (M or 0, 5)
    if not M:
        assert not dz.any()
    labels = torch.zeros(N, dtype=torch.int64)
    ref_labels = None if M is None else torch.zeros(M, dtype=torch.int64)
    how = (scalar(1), scalar(3), False, None)
    pairs = (z, torch.full((N,), 6.0), labels, refs, ref_labels)
    loss, weight_sum, num_pos = ops.positive_pair_loss_fwd(*pairs, *how)
    assert num_pos.tolist() == [M or 0] * N
    assert weight_sum.tolist() == pytest.approx([(M or 0) * 2 / 3] * N)
    assert loss.tolist() == pytest.approx([2 / 3 if M else 0] * N)
    dz, _ = ops.positive_pair_loss_bwd(torch.ones(N), *pairs, *how, True, True)
    assert dz.shape == z.shape


# What each argument must be, and what is given instead.
WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "dtype": (
        {"z": torch.ones(4, 2).double()},
        TypeError,
        "z must be float32, bfloat16 or float16",
    ),
    "dim": ({"z": torch.ones(4)}, ValueError, r"z must be \(rows, features\)"),
    "refs": ({"refs": torch.ones(4, 3)}, ValueError, r"refs must be \(M, 2\) as z"),
    "tau": ({"tau": scalar(0)}, ValueError, "tau must be above 0, got 0"),
    "cache": ({"cache_size": 8}, ValueError, "cache_size must be 0 on a CUDA device, got 8"),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_wrong_arguments(ops: Any, what: str) -> None:
    given, error, message = WRONG[what]
    arguments: dict[str, Any] = {"z": torch.ones(4, 2), "refs": None, "tau": scalar(1)}
    arguments |= {"cache_size": 0} | given
    with pytest.raises(error, match=message):
        ops.pair_lse_fwd(*arguments.values())
