"""`pair_lse`: by hand, the reference against a double loop, every implementation against it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast import pair_lse
from spcl_fast.testing import assert_within_budget, make_embeddings, similarity_rounding

IMPLS: list[Any] = ["reference", "chunked"]
WITH_TRITON: list[Any] = [*IMPLS, "triton"]  # where a few rows in float32 will do


def value_and_gradients(
    z: Tensor, tau: float, impl: Any, refs: Tensor | None = None
) -> dict[str, Tensor]:
    """Return lse and the gradients of a weighted sum of it in z, refs and tau."""
    z = z.clone().requires_grad_()
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    tau_tensor = torch.tensor(tau, dtype=wide, requires_grad=True)
    weights = torch.linspace(-1, 2, z.shape[0], dtype=wide)
    if refs is None:
        lse = pair_lse(z, tau_tensor, impl=impl)
        out = {"lse": lse}
        total = (weights * lse).sum()
    else:
        refs = refs.clone().requires_grad_()
        lse, lse_refs = pair_lse(z, tau_tensor, refs=refs, impl=impl)
        out = {"lse": lse, "lse_refs": lse_refs}
        total = (weights * lse).sum() + (lse_refs * torch.linspace(1, -2, len(refs))).sum()
    total.backward()
    out |= {"dz": z.grad, "dtau": tau_tensor.grad}  # type: ignore[dict-item]
    if refs is not None:
        out["drefs"] = refs.grad  # type: ignore[assignment]
    return {name: value.detach() for name, value in out.items()}


@pytest.mark.parametrize("impl", WITH_TRITON)
def test_by_hand(impl: Any) -> None:
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    lse = pair_lse(z, 0.5, impl=impl)  # sims 0, 2, 0
    assert lse.tolist() == pytest.approx([math.log(1 + math.e**2), math.log(2), lse[0].item()])
    rows, cols = pair_lse(z, 0.5, refs=z[:2], impl=impl)
    assert rows.tolist() == pytest.approx([lse[0].item()] * 3)
    assert cols.tolist() == pytest.approx([math.log(1 + 2 * math.e**2), math.log(2 + math.e**2)])


@pytest.mark.parametrize("impl", WITH_TRITON)
def test_two_rows_by_hand(impl: Any) -> None:
    z = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    out = value_and_gradients(z, 0.25, impl)
    assert out["lse"].tolist() == [4.0, 4.0]
    # weights -1 and 2 on the same sim: d sum / dz_0 = z_1 / tau
    assert out["dz"].tolist() == [[12.0, -4.0], [4.0, 8.0]]
    assert out["dtau"].item() == -16.0


def test_reference_equals_a_double_loop() -> None:
    z, refs = make_embeddings(7, 3, dtype=torch.float64), make_embeddings(4, 3, seed=1).double()
    for tau in (0.1, 2.0):
        lse = pair_lse(z, tau, impl="reference")
        for i in range(7):
            total = sum(math.exp(float(z[i] @ z[j]) / tau) for j in range(7) if j != i)
            assert lse[i].item() == pytest.approx(math.log(total), rel=1e-12)
        rows, cols = pair_lse(z, tau, refs=refs, impl="reference")
        for i in range(7):
            total = sum(math.exp(float(z[i] @ r) / tau) for r in refs)
            assert rows[i].item() == pytest.approx(math.log(total), rel=1e-12)
        for j in range(4):
            total = sum(math.exp(float(x @ refs[j]) / tau) for x in z)
            assert cols[j].item() == pytest.approx(math.log(total), rel=1e-12)


@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dim", [1, 3])  # a single feature, a few
def test_gradcheck(impl: Any, dim: int) -> None:
    z = make_embeddings(23, dim, dtype=torch.float64).requires_grad_()
    refs = make_embeddings(11, dim, dtype=torch.float64, seed=1).requires_grad_()
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, t: pair_lse(z, t, impl=impl), (z, tau))
    assert torch.autograd.gradcheck(
        lambda z, r, t: pair_lse(z, t, refs=r, impl=impl), (z, refs, tau)
    )


def test_double_backward() -> None:
    z = make_embeddings(5, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda z: pair_lse(z, 0.5, impl="reference"), (z,))
    (dz,) = torch.autograd.grad(pair_lse(z, 0.5, impl="chunked").sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative needs"):
        dz.sum().backward()


# 1, 2: nothing, one pair. 5: one panel. 67: ten ragged panels. tau: one-hot, usual, flat softmax.
@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("tau", [0.005, 0.07, 10.0])
@pytest.mark.parametrize("num_rows", [1, 2, 5, 67])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_chunked_equals_reference(dtype: torch.dtype, num_rows: int, tau: float) -> None:
    z = make_embeddings(num_rows, 5, dtype=dtype)
    rounding = similarity_rounding(1 / tau)
    for refs in (None, make_embeddings(13, 5, dtype=dtype, seed=1)):
        wide = None if refs is None else refs.double()
        actual = value_and_gradients(z, tau, "chunked", refs)
        truth = value_and_gradients(z.double(), tau, "reference", wide)
        eager = value_and_gradients(z, tau, "reference", refs)
        for name, value in actual.items():
            if dtype == torch.float64:
                torch.testing.assert_close(value, truth[name], rtol=1e-11, atol=1e-11, msg=name)
            elif name == "dtau":  # a sum of terms of either sign: measured against their sizes
                size = (z.double() * truth["dz"]).abs().sum().item() / tau
                error = abs(value.item() - truth[name].item())
                assert error <= max(1e-5, rounding) * size
            else:
                size = 1.0 if name.startswith("lse") else truth[name].abs().max().item()
                budget = {"factor": 3, "rounding": rounding * size}
                assert_within_budget(value, truth[name], eager[name], name=name, **budget)


# Norms at which exp of a raw or constantly shifted similarity overflows or vanishes in float32.
@pytest.mark.usefixtures("small_panels")
@pytest.mark.parametrize("norm", [1e-3, 1.0, 1e2, 1e3])
@pytest.mark.parametrize("tau", [0.005, 10.0])
def test_any_norm(norm: float, tau: float) -> None:
    z = make_embeddings(67, 5, norm=norm, dtype=torch.float64)
    z[::3] *= 1e-2  # rows whose sums differ by hundreds of orders of magnitude
    exact = value_and_gradients(z, tau, "reference")
    rounding = similarity_rounding(norm**2 / tau, torch.float64)
    for name, value in value_and_gradients(z, tau, "chunked").items():
        scale = exact[name].abs().max().clamp_min(1e-300)
        relative = 1e-9 if name == "lse" else max(1e-9, rounding)
        assert ((value - exact[name]).abs().max() / scale).item() < relative, name
    single = value_and_gradients(z.float(), tau, "chunked")
    assert all(value.isfinite().all() for value in single.values())
    torch.testing.assert_close(single["lse"].double(), exact["lse"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_collapsed_rows(impl: Any) -> None:
    z = make_embeddings(1, 4).expand(50, 4)
    lse = pair_lse(z, 0.07, impl=impl)
    torch.testing.assert_close(lse, torch.full((50,), math.log(49) + 1 / 0.07))


@pytest.mark.parametrize("impl", WITH_TRITON)
def test_nothing_to_compare(impl: Any) -> None:
    one = value_and_gradients(torch.ones(1, 3), 0.1, impl)
    assert one["lse"].item() == -math.inf
    assert one["dz"].abs().sum().item() == 0
    assert pair_lse(torch.ones(0, 3), 0.1, impl=impl).shape == (0,)
    rows, cols = pair_lse(torch.ones(2, 3), 0.1, refs=torch.ones(0, 3), impl=impl)
    assert rows.tolist() == [-math.inf] * 2
    assert cols.shape == (0,)


@pytest.mark.usefixtures("small_panels")
def test_strides_do_not_matter() -> None:
    z = make_embeddings(40, 6)
    transposed = z.T.contiguous().T
    sliced = torch.stack([z, -z], dim=2).flatten(1)[:, ::2]
    exact = value_and_gradients(z, 0.1, "chunked")
    for other in (transposed, sliced):
        assert not other.is_contiguous()
        leaf = other.detach().requires_grad_()
        lse = pair_lse(leaf, 0.1, impl="chunked")
        (torch.linspace(-1, 2, 40) * lse).sum().backward()
        torch.testing.assert_close(lse.detach(), exact["lse"])
        torch.testing.assert_close(leaf.grad, exact["dz"])


@pytest.mark.usefixtures("small_panels")
def test_each_gradient_alone() -> None:
    z, refs = make_embeddings(20, 4), make_embeddings(9, 4, seed=1)
    full = value_and_gradients(z, 0.2, "chunked", refs)
    for name in ("dz", "drefs", "dtau"):
        leaves = {"dz": z.clone(), "drefs": refs.clone(), "dtau": torch.tensor(0.2)}
        leaf = leaves[name].requires_grad_()
        lse, lse_refs = pair_lse(leaves["dz"], leaves["dtau"], refs=leaves["drefs"], impl="chunked")
        total = (torch.linspace(-1, 2, 20) * lse).sum() + (
            torch.linspace(1, -2, 9) * lse_refs
        ).sum()
        total.backward()
        torch.testing.assert_close(leaf.grad, full[name])


@pytest.mark.parametrize("which", [0, 1])  # the gradient of one output of two
def test_one_output_of_the_rectangular_case(which: int) -> None:
    gradients = []
    for impl in IMPLS:
        z, refs = make_embeddings(20, 4).requires_grad_(), make_embeddings(9, 4, seed=1)
        pair_lse(z, 0.2, refs=refs, impl=impl)[which].sum().backward()
        gradients.append(z.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("impl", IMPLS)
def test_autocast_does_not_lower_the_precision(impl: Any) -> None:
    z = make_embeddings(30, 8)
    plain = value_and_gradients(z, 0.07, impl)
    with torch.autocast("cpu", torch.bfloat16):
        inside = value_and_gradients(z, 0.07, impl)
    assert inside["lse"].dtype == torch.float32
    torch.testing.assert_close(inside["lse"], plain["lse"], rtol=0, atol=0)
    if impl != "reference":  # whose backward runs where the caller runs it
        torch.testing.assert_close(inside["dz"], plain["dz"], rtol=0, atol=0)


def bad_calls() -> list[tuple[type[Exception], str, dict[str, Any]]]:
    z = torch.ones(4, 2)
    meta = torch.ones(4, 2, device="meta")
    return [
        (TypeError, "z must be floating", {"z": z.long()}),
        (ValueError, "z must be .rows", {"z": z[0]}),
        (ValueError, "tau must be finite", {"tau": 0.0}),
        (ValueError, "tau must be finite", {"tau": math.inf}),
        (ValueError, "tau must be finite", {"tau": math.nan}),
        (TypeError, "tau must be a number", {"tau": "0.1"}),
        (ValueError, "tau must be a number or a 0-dim", {"tau": torch.ones(1)}),
        (ValueError, "tau must be a number or a 0-dim", {"tau": torch.tensor(1)}),
        (ValueError, "tau must be on the device", {"tau": torch.tensor(1.0, device="meta")}),
        (TypeError, "refs must be floating", {"refs": z.long()}),
        (TypeError, "refs must have the dtype", {"refs": z.double()}),
        (ValueError, "refs must be .rows", {"refs": z[0]}),
        (ValueError, "refs must be .M, 2", {"refs": torch.ones(4, 3)}),
        (ValueError, "refs must be on the device", {"refs": meta}),
        (ValueError, "impl must be one of", {"impl": "fast"}),
    ]


@pytest.mark.parametrize(("error", "message", "change"), bad_calls())
def test_raises(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    good: dict[str, Any] = {"z": torch.ones(4, 2), "tau": 0.1}
    with pytest.raises(error, match=message):
        pair_lse(**good | change)
