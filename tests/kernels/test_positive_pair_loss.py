"""`positive_pair_loss` of the kernels against the reference in float64: values and gradients."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from positive_values import (
    TAU,
    check,
    kernel_results,
    operands,
    reference_results,
    row_lse,
    row_weights,
)
from torch.utils._python_dispatch import TorchDispatchMode

from spcl_fast.kernels import positive_pair_loss as kernels
from spcl_fast.reference.positive_pair_loss import positive_mask
from spcl_fast.testing import make_clusters, make_embeddings, make_labels

INTERPRETED = pytest.mark.interpreted
# What makes the host wait for a device.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "bincount", "equal")


class ForbidWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        assert not name.startswith(WAITS), f"{name} waits for the device"
        return func(*args, **kwargs or {})


RAGGED, FULL = (203, 48), (256, 64)
# What is compiled: any two of mode, dtype and size.
COMPILED = [
    ("hard", torch.float32, FULL),
    ("hard", torch.bfloat16, RAGGED),
    ("linear", torch.bfloat16, FULL),
    ("linear", torch.float32, RAGGED),
]
OF_SQUARES = list(
    itertools.product(
        ("hard", "linear"), (torch.float32, torch.bfloat16, torch.float16), (RAGGED, FULL)
    )
)


# Ragged rows and features; one block of features that is full, one that is not.
@pytest.mark.parametrize(
    ("mode", "dtype", "size"),
    [*COMPILED, *(pytest.param(*x, marks=INTERPRETED) for x in OF_SQUARES if x not in COMPILED)],
)
def test_square(mode: str, dtype: torch.dtype, size: tuple[int, int], device: str) -> None:
    num_rows, dim = size
    z = make_embeddings(num_rows, dim, dtype=dtype, device=device)
    check(z, make_labels(num_rows, 3, unknown_share=0.1, device=device), mode=mode)


# More rows than references and fewer, so that either side has the ragged last tile alone.
@pytest.mark.parametrize(
    ("num_rows", "num_refs", "dtype"),
    [
        (203, 128, torch.float32),
        (128, 203, torch.bfloat16),
        pytest.param(128, 203, torch.float32, marks=INTERPRETED),
        pytest.param(203, 128, torch.bfloat16, marks=INTERPRETED),
    ],
)
def test_references(num_rows: int, num_refs: int, dtype: torch.dtype, device: str) -> None:
    z = make_embeddings(num_rows, 48, dtype=dtype, device=device)
    refs = make_embeddings(num_refs, 48, dtype=dtype, device=device, seed=1)
    labels = make_labels(num_rows, 3, unknown_share=0.1, device=device)
    ref_labels = make_labels(num_refs, 4, unknown_share=0.1, device=device, seed=1)
    check(z, labels, refs=refs, ref_labels=ref_labels)


# More than one block of 256 features, the last of them full and not.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "dim"),
    [
        (torch.float32, 300),
        (torch.bfloat16, 512),
        pytest.param(torch.float32, 512, marks=INTERPRETED),
        pytest.param(torch.bfloat16, 300, marks=INTERPRETED),
    ],
)
def test_many_features(dtype: torch.dtype, dim: int, device: str) -> None:
    z = make_embeddings(150, dim, dtype=dtype, device=device)
    check(z, make_labels(150, 3, device=device))


# Two planes, by the error of tf32; rows of clusters, and rows that are wide.
@pytest.mark.breadth
@pytest.mark.parametrize("dim", [24, 300])
def test_two_planes(dim: int, device: str) -> None:
    torch.set_float32_matmul_precision("high")
    labels = make_labels(130, 3, device=device)
    refs = make_embeddings(70, dim, device=device, seed=1)
    for z in (make_embeddings(130, dim, device=device), make_clusters(130, dim, 5, device=device)):
        check(z, labels, gamma=8.0)
        check(z, labels, refs=refs, ref_labels=labels[:70], gamma=8.0)
        check(z, labels, gamma=math.inf)


# Rows of clusters, at a pace that few pairs keep: 0 <= w <= 1 whatever a loss of 0 is rounded to.
@pytest.mark.parametrize(
    "gamma", [1e-30, *(pytest.param(x, marks=INTERPRETED) for x in (1e-6, 0.01))]
)
def test_weights_are_shares(gamma: float, device: str) -> None:
    z = make_clusters(40, 24, 20, spread=1e-3, device=device)
    labels = torch.arange(40, device=device) % 20
    for mode in ("hard", "linear"):
        how = (0.005, gamma, mode, None)  # lse is the similarity of the one near neighbour
        lse = (z.double() @ z.double().T / 0.005).fill_diagonal_(-math.inf).logsumexp(1).float()
        for shift in (0.0, -1e-4, -1.0):  # losses below 0, by rounding and as they are
            given = operands(z, lse + shift, labels, None, None, *how)
            weight_sum = kernels.positive_pair_loss_fwd(*given).weight_sum
            assert ((weight_sum >= 0) & (weight_sum <= 1)).all()
            assert shift > -1 or (weight_sum == 1).all()


# Differences of tenths are rounded: 0.3 - 0.2 <= 0.1 < 0.4 - 0.3 in float64. Wide enough that rows
# of one block have intervals with other ends; integer labels; a window of nothing.
@pytest.mark.parametrize(
    ("step", "window", "mode"),
    [
        (0.1, 0.3, "hard"),
        (1, 2, "linear"),
        pytest.param(0.1, 0.3, "linear", marks=INTERPRETED),
        pytest.param(1, 2, "hard", marks=INTERPRETED),
        *(
            pytest.param(*x, mode, marks=INTERPRETED)
            for x in ((0.1, 0.1), (0.07, 0.21), (1, 0))
            for mode in ("hard", "linear")
        ),
    ],
)
def test_window(step: float, window: float, mode: str, device: str) -> None:
    z = make_embeddings(220, 32, device=device)
    labels = make_labels(220, 15, device=device)
    if isinstance(step, float):
        labels = step * labels.double()
        labels[::9], labels[::13] = math.nan, -0.5
    check(z, labels, window=window, mode=mode)


@pytest.mark.breadth
# A border that only exact arithmetic in float64 finds, between many equal labels.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32])
def test_window_counts(dtype: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-2, 60, (300,), generator=generator)
    labels = (labels if dtype == torch.int32 else labels.double() * 0.1).to(dtype).to(device)
    others = labels[:110].flip(0).contiguous()
    z = torch.zeros(300, 16, device=device)
    for window in (0.0, 0.1, 0.3, 0.7, 4.0, math.inf):
        for refs, ref_labels in ((None, None), (z[:110], others)):
            truth = positive_mask(labels, ref_labels, window).sum(1)
            given = operands(z, z[:, 0], labels, refs, ref_labels, 1.0, 1.0, "hard", window)
            assert torch.equal(kernels.positive_pair_loss_fwd(*given).num_pos, truth), window


@pytest.mark.breadth
# Nothing, one row without any pair, one pair, one tile less, one full and one more; features from
# one on.
@pytest.mark.parametrize("num_rows", [0, 1, 2, 31, 32, 33])
@pytest.mark.parametrize("dim", [1, 16, 17])
@pytest.mark.parametrize("num_classes", [1, 2, 1000])
def test_sizes(num_rows: int, dim: int, num_classes: int, device: str) -> None:
    z = make_embeddings(num_rows, dim, device=device)
    labels = make_labels(num_rows, num_classes, device=device)
    refs, ref_labels = make_embeddings(7, dim, device=device, seed=1), labels.new_zeros(7)
    check(z, labels, gamma=8.0)
    check(z, labels, refs=refs, ref_labels=ref_labels, gamma=8.0)
    check(refs, ref_labels, refs=z, ref_labels=labels, gamma=8.0)


@pytest.mark.breadth
@pytest.mark.parametrize("mode", ["hard", "linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
# One class alone, all labels distinct, some unknown, all unknown.
@pytest.mark.parametrize(("num_classes", "unknown"), [(1, 0.0), (10**9, 0.0), (4, 0.3), (4, 1.0)])
# No weights by a number (class sums) and by a tensor (pairs), and numbers on the device.
@pytest.mark.parametrize(
    ("gamma", "as_tensors"), [(math.inf, False), (math.inf, True), (None, True)]
)
def test_labels_and_paces(
    mode: str,
    dtype: torch.dtype,
    num_classes: int,
    unknown: float,
    gamma: float | None,
    as_tensors: bool,
    device: str,
) -> None:
    z = make_embeddings(150, 24, dtype=dtype, device=device)
    labels = make_labels(150, num_classes, unknown_share=unknown, device=device)
    check(z, labels, mode=mode, gamma=gamma, as_tensors=as_tensors)
    refs, ref_labels = z[:70].clone(), labels[:70].clone()
    options: dict[str, Any] = {"mode": mode, "gamma": gamma, "as_tensors": as_tensors}
    check(z, labels, refs=refs, ref_labels=ref_labels, **options)


@pytest.mark.breadth
# Of a column-major matrix, of every other row and feature, and of one row seen many times.
@pytest.mark.parametrize("kind", ["transposed", "strided", "expanded"])
def test_strides(kind: str, device: str) -> None:
    z = make_embeddings(100, 40, device=device)
    if kind == "transposed":
        z = z.T.contiguous().T
    elif kind == "strided":
        z = torch.stack([z, z + 1], 2).flatten(1).repeat_interleave(2, 0)[::2, ::2]
    else:
        z = z[:1].expand(100, 40)
    labels = make_labels(100, 3, device=device)
    check(z, labels, gamma=8.0)
    check(z, labels, refs=z, ref_labels=labels.flip(0), gamma=8.0)


@pytest.mark.breadth
# From norms that saturate the softmax to those that do not move it.
@pytest.mark.parametrize("norm", [0.1, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_need_no_norm(norm: float, dtype: torch.dtype, device: str) -> None:
    z = make_embeddings(120, 24, norm=norm, dtype=dtype, device=device)
    check(z, make_labels(120, 3, device=device))


@pytest.mark.breadth
# h_ij below the range of float16 and above it.
@pytest.mark.parametrize(
    ("scale", "norm", "gamma"), [(1e-6, 1.0, 12.0), (1e5, 2**-12, 6.0), (1e3, 2**-8, 6.0)]
)
def test_range_of_float16(scale: float, norm: float, gamma: float, device: str) -> None:
    z = make_embeddings(130, 24, norm=norm, dtype=torch.float16, device=device)
    lse, labels = row_lse(z), make_labels(130, 3, device=device)
    c = scale * torch.linspace(-1, 2, 130, device=device)
    how: Any = (lse, labels, None, None, TAU, gamma, "linear", None)
    exact, actual = (
        kernels.positive_pair_loss_bwd(c, *operands(x, *how), needs_z=True, needs_refs=False)[0]
        for x in (z.float(), z)
    )
    assert actual is not None
    assert exact is not None
    assert exact.abs().max() < 2**15
    assert (actual.float() - exact).abs().max() <= 2**-9 * exact.abs().max() + 2**-24


@pytest.mark.parametrize("value", [math.nan, pytest.param(math.inf, marks=INTERPRETED)])
@pytest.mark.parametrize("mode", [pytest.param("hard", marks=INTERPRETED), "linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_that_are_not_finite(value: float, mode: str, dtype: torch.dtype, device: str) -> None:
    z = make_embeddings(150, 32, dtype=dtype, device=device)
    z[17] = value
    labels = make_labels(150, 3, device=device)
    how = (TAU, 5.0, mode, None)
    lse = torch.full((150,), 9.0, device=device)
    actual = kernel_results(z, lse, labels, None, None, *how)
    truth = reference_results(z.double(), lse.double(), labels, None, None, *how)
    for name in ("loss", "weight_sum"):
        found, expected = actual[name], truth[name]
        assert found is not None
        assert expected is not None
        assert torch.equal(found.isfinite(), expected.isfinite()), name
    assert not actual["dz"][labels == labels[17]].isfinite().all(1).any()  # type: ignore[index]


# For GPUs: an emulator has one schedule, as the interpreter has.
@INTERPRETED
@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float16, marks=pytest.mark.breadth)]
)
def test_bits_repeat(dtype: torch.dtype, device: str) -> None:
    z = make_embeddings(150, 32, dtype=dtype, device=device)
    labels = make_labels(150, 3, device=device)
    for gamma in (5.0, math.inf):
        how = (row_lse(z), labels, None, None, TAU, gamma, "linear", None)
        runs = [kernel_results(z, *how) for _ in range(2)]
        for name, value in runs[0].items():
            assert value is None or torch.equal(value, runs[1][name]), name  # type: ignore[arg-type]


@pytest.mark.breadth
@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("gamma", [5.0, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_value_reaches_the_host(
    window: float | None,
    gamma: float,
    dtype: torch.dtype,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from spcl_fast import class_sums

    monkeypatch.setattr(class_sums, "is_host", lambda _device: False)
    z = make_embeddings(100, 24, dtype=dtype, device=device)
    refs, labels, lse = z[:60], make_labels(100, 3, device=device), row_lse(z)
    tau = torch.tensor(TAU, device=device)
    for references, ref_labels in ((None, None), (refs, labels[:60])):
        with ForbidWaiting():
            kernel_results(z, lse, labels, references, ref_labels, tau, gamma, "linear", window)


@pytest.mark.breadth
def test_only_what_is_needed(device: str) -> None:
    z, labels = make_embeddings(50, 16, device=device), make_labels(50, 3, device=device)
    how: Any = operands(z, row_lse(z), labels, z, labels, TAU, 5.0, "linear", None)
    both = kernels.positive_pair_loss_bwd(row_weights(z), *how, needs_z=True, needs_refs=True)
    for needs in ((True, False), (False, True), (False, False)):
        some = kernels.positive_pair_loss_bwd(
            row_weights(z), *how, needs_z=needs[0], needs_refs=needs[1]
        )
        for value, full, needed in zip(some, both, needs, strict=True):
            assert (value is not None) == needed
            assert value is None or torch.equal(value, full)  # type: ignore[arg-type]
