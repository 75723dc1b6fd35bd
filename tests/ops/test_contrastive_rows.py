"""`contrastive_rows` is `pair_lse` and `positive_pair_loss`, whatever the labels and weights."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast import native
from spcl_fast.operands import Lse, Pairs, PositivePairLoss
from spcl_fast.ops import Label, _impl, contrastive_rows, pair_lse, positive_pair_loss
from spcl_fast.testing import make_embeddings, make_labels, similarity_rounding

built = pytest.mark.skipif(not native.is_built(), reason="spcl_fast._C is not built")
IMPLS = ["reference", "chunked", pytest.param("native", marks=built)]


def cases(num_rows: int, gamma: float) -> list[Label]:
    """A coarse, a fine and a partly unknown label, a window, weights of 1, a tensor gamma."""
    position = torch.linspace(0, 1, num_rows, dtype=torch.float64)
    return [
        Label(make_labels(num_rows, 2), gamma),
        Label(make_labels(num_rows, 1 + num_rows // 4, seed=1) + 2**40, 0.8 * gamma),
        Label(make_labels(num_rows, 5, unknown_share=0.3, seed=2), torch.tensor(1.2 * gamma)),
        Label(position, gamma, 0.1),
        Label(make_labels(num_rows, 3, seed=3), math.inf),
    ]


def results(z: Tensor, tau: float, labels: list[Label], mode: Any, impl: Any) -> dict[str, Tensor]:
    """Return values and gradients of a weighted sum of everything differentiable."""
    z = z.detach().requires_grad_()
    t = torch.tensor(tau, dtype=torch.float64, requires_grad=True)
    lse, rows = contrastive_rows(z, t, labels, mode=mode, impl=impl)
    weights = torch.linspace(-1, 2, z.shape[0], dtype=torch.float64)
    total = (lse * weights)[lse.isfinite()].sum()
    for k, row in enumerate(rows):
        total = total + (k + 1) * (row.loss * weights.flip(0)).sum()
    dz, dtau = torch.autograd.grad(total, (z, t))
    out = {"lse": lse.detach(), "dz": dz, "dtau": dtau}
    for k, row in enumerate(rows):
        out |= {f"{name} {k}": x.detach() for name, x in row._asdict().items()}
    return out


# 1, 2: no pair, one pair. 67: one block. 450: blocks of 96, the last one ragged. tau .07 bounds
# the exponents, .005 does not. 0 and 256 MiB: exponents recomputed and cached.
@pytest.mark.parametrize("mib", [0, 256])
@pytest.mark.parametrize("mode", ["linear", "hard"])
@pytest.mark.parametrize("tau", [0.07, 0.005])
@pytest.mark.parametrize("num_rows", [1, 2, 67, 450])
@pytest.mark.parametrize("impl", IMPLS)
def test_equals_float64(
    impl: Any, num_rows: int, tau: float, mode: Any, mib: int, request: pytest.FixtureRequest
) -> None:
    if mib and impl != "native":
        pytest.skip("only native caches tiles")
    before = native.get_tile_cache_mib()
    request.addfinalizer(lambda: native.set_tile_cache_mib(before))
    native.set_tile_cache_mib(mib)
    z, labels = make_embeddings(num_rows, 24), cases(num_rows, 0.5 / tau)
    truth = results(z.double(), tau, labels, mode, "reference")
    actual = results(z, tau, labels, mode, impl)
    rounding = 2 * similarity_rounding(1 / tau)
    for key, value in actual.items():
        finite = truth["dz" if key == "dtau" else key]
        # what is summed can cancel to nothing
        size = finite[finite.isfinite()].abs().sum().item() / (tau if key == "dtau" else 1)
        atol = rounding * max(1.0, size)
        expected = truth[key].to(value.dtype)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=atol, msg=f"{key}: {{}}".format)


@pytest.mark.parametrize("impl", IMPLS)
def test_values_are_those_of_the_two_ops(impl: Any) -> None:
    z, labels = make_embeddings(100, 16), cases(100, 8.0)
    lse, rows = contrastive_rows(z, 0.1, labels, mode="linear", impl=impl)
    assert torch.equal(lse, pair_lse(z, 0.1, impl=impl))
    for row, (values, gamma, window, _) in zip(rows, labels, strict=True):
        alone = positive_pair_loss(
            z, lse, values, tau=0.1, gamma=gamma, mode="linear", window=window, impl=impl
        )
        assert all(torch.equal(a, b) for a, b in zip(row, alone, strict=True))


@built
def test_gradient_of_one_label_alone() -> None:
    # What reaches the other label, and lse, is None.
    z = make_embeddings(50, 8).requires_grad_()
    labels = [Label(make_labels(50, 2), 9.0), Label(make_labels(50, 7), 9.0)]
    for impl in ("reference", "native", "chunked"):
        _, rows = contrastive_rows(z, 0.1, labels, mode="linear", impl=impl)
        (dz,) = torch.autograd.grad(rows[1].loss.sum(), z)
        if impl == "reference":
            truth = dz
        torch.testing.assert_close(dz, truth, rtol=1e-4, atol=1e-5)


Y = make_labels(4, 2)


# One wrong argument each, and what the sentence says.
@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"tau": -1.0}, ValueError, "tau must be finite and above 0, got -1.0"),
        ({"labels": [Label(Y, 0.0)]}, ValueError, "gamma must be above 0, got 0.0"),
        ({"labels": [Label(Y, 1.0, -1.0)]}, ValueError, "window must be finite and at least 0"),
        ({"labels": [Label(Y[:3])]}, ValueError, r"labels must be \(4,\), got \(3,\)"),
        ({"labels": [Label(Y * 1.0)]}, TypeError, "labels must be integer without a window"),
        ({"labels": [Label(Y, ref_values=Y)]}, ValueError, "ref_values must be None without"),
        ({"mode": "soft"}, ValueError, "mode must be"),
        ({"z": torch.zeros(4)}, ValueError, r"z must be \(rows, features\), got \(4,\)"),
    ],
)
@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_wrong_arguments(impl: Any, change: Any, error: type[Exception], sentence: str) -> None:
    given: dict[str, Any] = {"z": make_embeddings(4, 3), "tau": 0.1, "labels": [Label(Y)]}
    given |= {"mode": "linear"} | change
    with pytest.raises(error, match=sentence):
        contrastive_rows(impl=impl, **given)


def test_an_implementation_may_have_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    z, labels = make_embeddings(9, 3).requires_grad_(), [Label(make_labels(9, 2), 5.0)]

    def contrastive_rows_fwd(
        pairs: Pairs, labels: Any, mode: str, *, has_backward: bool
    ) -> tuple[Lse, list[PositivePairLoss]]:
        assert (mode, has_backward, len(labels)) == ("linear", True, 1)
        row = pairs.z.new_ones(9)
        return Lse(row, None), [PositivePairLoss(3 * row, row, row.long())]

    def contrastive_rows_bwd(
        pairs: Pairs, lse: Lse, dlse: Tensor, gradients: Any, mode: str
    ) -> Tensor:
        assert gradients[0].label.gamma == 5.0
        return (7 * gradients[0].c)[:, None].expand_as(pairs.z)

    own = {f.__name__: f for f in (contrastive_rows_fwd, contrastive_rows_bwd)}
    chunked = _impl._IMPLEMENTATIONS["chunked"]
    own_chunked = chunked._replace(
        package=SimpleNamespace(**own), fuses=frozenset({("contrastive_rows", "cpu")})
    )
    monkeypatch.setitem(_impl._IMPLEMENTATIONS, "chunked", own_chunked)
    lse, (rows,) = contrastive_rows(z, 0.1, labels, mode="linear", impl="chunked")
    assert lse.tolist() == [1.0] * 9
    assert rows.loss.tolist() == [3.0] * 9
    (dz,) = torch.autograd.grad(rows.loss.sum(), z)
    assert dz.unique().tolist() == [7.0]
