"""`positive_pair_loss` of the kernels against the reference in float64: values and gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from spcl_fast import reference
from spcl_fast.kernels import positive_pair_loss as kernels
from spcl_fast.operands import Label, Pairs
from spcl_fast.reference.positive_pair_loss import positive_mask
from spcl_fast.testing import (
    assert_within_budget,
    make_embeddings,
    make_labels,
    similarity_rounding,
)

TAU = 0.07
# What makes the host wait for a device.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "bincount", "equal")


class ForbidWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        assert not name.startswith(WAITS), f"{name} waits for the device"
        return func(*args, **kwargs or {})


def row_lse(z: Tensor, refs: Tensor | None = None) -> Tensor:
    """Return lse (N,) float32 of rows that may be alone."""
    others = z if refs is None else refs
    sim = z.double() @ others.double().T / TAU
    if refs is None:
        sim.fill_diagonal_(-math.inf)
    return sim.logsumexp(1).nan_to_num(neginf=0.0).float()


def pace(z: Tensor, lse: Tensor, refs: Tensor | None, quantile: float) -> float:
    """Return a gamma in the middle of the widest of the gaps between losses near a quantile.

    Rounding then decides about no pair.
    """
    others = z if refs is None else refs
    values = (lse.double()[:, None] - z.double() @ others.double().T / TAU).flatten()
    values = values[values > 0.5].sort().values
    if values.numel() < 2:
        return 1.0
    near = int(quantile * values.numel())
    some = values[max(near - 50, 0) : near + 50]
    widest = int(some.diff().argmax())
    return float(some[widest : widest + 2].mean())


def operands(
    z: Tensor, lse: Tensor, labels: Tensor, refs: Any, ref_labels: Any, *how: Any
) -> tuple[Pairs, Tensor, Label, Any]:
    """Return the arguments of the op, for `how`: tau, gamma, mode and window."""
    tau, gamma, mode, window = how
    return Pairs(z, refs, tau), lse, Label(labels, gamma, window, ref_labels), mode


def kernel_results(
    z: Tensor,
    lse: Tensor,
    labels: Tensor,
    refs: Tensor | None,
    ref_labels: Tensor | None,
    *how: Any,
) -> dict[str, Tensor | None]:
    """Return the outputs, and the gradients of a weighted sum of the loss with lse held fixed."""
    given = operands(z, lse, labels, refs, ref_labels, *how)
    out = kernels.positive_pair_loss_fwd(*given)
    c = row_weights(z) / out.num_pos.clamp_min(1)
    dz, drefs = kernels.positive_pair_loss_bwd(c, *given, needs_z=True, needs_refs=refs is not None)
    return {**out._asdict(), "dz": dz, "drefs": drefs}


def reference_results(
    z: Tensor,
    lse: Tensor,
    labels: Tensor,
    refs: Tensor | None,
    ref_labels: Tensor | None,
    *how: Any,
) -> dict[str, Tensor | None]:
    """Return what `kernel_results` should."""
    z = z.detach().requires_grad_()
    refs = None if refs is None else refs.detach().requires_grad_()
    given = operands(z, lse, labels, refs, ref_labels, *how)
    loss, weight_sum, num_pos = reference.positive_pair_loss(*given)
    (row_weights(z).to(loss.dtype) * loss).sum().backward()
    return {
        "loss": loss.detach(),
        "weight_sum": weight_sum,
        "num_pos": num_pos,
        "dz": z.grad,
        "drefs": None if refs is None else refs.grad,
    }


def row_weights(z: Tensor) -> Tensor:
    return torch.linspace(-1, 2, z.shape[0], device=z.device)


def check(
    z: Tensor,
    labels: Tensor,
    *,
    refs: Tensor | None = None,
    ref_labels: Tensor | None = None,
    mode: str = "linear",
    window: float | None = None,
    gamma: float | None = None,
    as_tensors: bool = False,
    factor: float = 2.0,
) -> dict[str, Tensor | None]:
    """Assert that values and gradients are within the budget, and return them."""
    lse = row_lse(z, refs)
    if gamma is None:
        gamma = pace(z, lse, refs, 0.4)
    tau: Any = TAU
    pacing: Any = gamma
    if as_tensors:
        tau, pacing = torch.tensor(TAU, device=z.device), torch.tensor(gamma, device=z.device)
        gamma = float(torch.tensor(gamma))
    actual = kernel_results(z, lse, labels, refs, ref_labels, tau, pacing, mode, window)
    how = (float(tau), gamma, mode, window)
    wide_refs = None if refs is None else refs.double()
    truth = reference_results(z.double(), lse.double(), labels, wide_refs, ref_labels, *how)
    eager = reference_results(z, lse, labels, refs, ref_labels, *how)
    for name, value in actual.items():
        expected, other = truth[name], eager[name]
        if value is None or expected is None or other is None:
            assert value is expected is other is None, name
        else:
            largest = max(expected.abs().flatten().tolist(), default=0.0)
            size = 1.0 if name == "loss" else largest / gamma
            budget: Any = {"factor": factor, "rounding": similarity_rounding(1 / TAU) * size}
            assert_within_budget(value, expected, other, name=name, **budget)
    return actual


# Ragged rows and features; one block of features that is full, one that is not.
@pytest.mark.parametrize(("num_rows", "dim"), [(203, 48), (256, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["hard", "linear"])
def test_square(num_rows: int, dim: int, dtype: torch.dtype, mode: str, device: str) -> None:
    z = make_embeddings(num_rows, dim, dtype=dtype, device=device)
    check(z, make_labels(num_rows, 3, unknown_share=0.1, device=device), mode=mode)


# More rows than references and fewer, so that either side has the ragged last tile alone.
@pytest.mark.parametrize(("num_rows", "num_refs"), [(203, 128), (128, 203)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_references(num_rows: int, num_refs: int, dtype: torch.dtype, device: str) -> None:
    z = make_embeddings(num_rows, 48, dtype=dtype, device=device)
    refs = make_embeddings(num_refs, 48, dtype=dtype, device=device, seed=1)
    labels = make_labels(num_rows, 3, unknown_share=0.1, device=device)
    ref_labels = make_labels(num_refs, 4, unknown_share=0.1, device=device, seed=1)
    check(z, labels, refs=refs, ref_labels=ref_labels)


# More than one block of 256 features, the last of them full and not.
@pytest.mark.parametrize("dim", [300, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_features(dim: int, dtype: torch.dtype, device: str) -> None:
    z = make_embeddings(150, dim, dtype=dtype, device=device)
    # A GPU may add 512 products one after the other, which a CPU does in several sums.
    check(z, make_labels(150, 3, device=device), factor=4.0)


# Differences of tenths are rounded: 0.3 - 0.2 <= 0.1 < 0.4 - 0.3 in float64. Wide enough that rows
# of one block have intervals with other ends; integer labels; a window of nothing.
@pytest.mark.parametrize(("step", "window"), [(0.1, 0.1), (0.1, 0.3), (0.07, 0.21), (1, 2), (1, 0)])
@pytest.mark.parametrize("mode", ["hard", "linear"])
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
# h_ij below the range of float16 and above it, the latter by c and by weights far above 1, which
# follow from an lse that the positives are not part of.
@pytest.mark.parametrize(
    ("scale", "norm", "gamma", "lse_shift"),
    [(1e-6, 1.0, 12.0, 0.0), (1e5, 2**-12, 6.0, 0.0), (1e3, 2**-8, 6.0, -400.0)],
)
def test_range_of_float16(
    scale: float, norm: float, gamma: float, lse_shift: float, device: str
) -> None:
    z = make_embeddings(130, 24, norm=norm, dtype=torch.float16, device=device)
    lse, labels = row_lse(z) + lse_shift, make_labels(130, 3, device=device)
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


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("mode", ["hard", "linear"])
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_bits_repeat(dtype: torch.dtype, device: str) -> None:
    z = make_embeddings(150, 32, dtype=dtype, device=device)
    labels = make_labels(150, 3, device=device)
    how = (row_lse(z), labels, None, None, TAU, 5.0, "linear", None)
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
