"""torch.func.grad through every loss, and half precision whose gradients add up in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast import InfoNCELoss, NTXentLoss, SelfPacedContrastiveLoss, SupConLoss, YAwareLoss
from spcl_fast.compat import lightly, monai, open_clip, spcl, supcontrast
from spcl_fast.compat import pytorch_metric_learning as pml
from spcl_fast.testing import make_embeddings, make_labels

Z, Y = make_embeddings(16, 8), make_labels(16, 4)
BANK, BANK_Y = make_embeddings(12, 8, seed=1), make_labels(12, 4, seed=1)
MASK = Y[:8, None] == Y[:8]
PAIRS = tuple(torch.tensor(x) for x in ([0, 1, 2], [3, 4, 5], [0, 1, 2], [6, 7, 8]))
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "supcon": lambda z: SupConLoss()(z, Y).loss,
    "self-paced": lambda z: SelfPacedContrastiveLoss()(z, Y, gamma=9.0).loss,
    "bank": lambda z: SupConLoss()(z, Y, bank=BANK, bank_labels=BANK_Y).loss,
    "reference": lambda z: SelfPacedContrastiveLoss(impl="reference")(z, Y).loss,
    "infonce": lambda z: InfoNCELoss()(z[:8], z[8:]).loss,
    "ntxent": lambda z: NTXentLoss()(z[:8], z[8:]).loss,
    "y-aware": lambda z: YAwareLoss()(z, Y / 4).loss,
    "compat.supcontrast": lambda z: supcontrast.SupConLoss()(z[:, None], Y),
    "compat.pml SupCon": lambda z: pml.SupConLoss()(z, Y),
    "compat.pml SupCon, pairs": lambda z: pml.SupConLoss()(z, None, PAIRS),
    "compat.pml NTXent": lambda z: pml.NTXentLoss()(z, Y),
    "compat.pml NTXent, references": lambda z: pml.NTXentLoss()(
        z, Y, ref_emb=BANK, ref_labels=BANK_Y
    ),
    "compat.pml NTXent, pairs": lambda z: pml.NTXentLoss()(z, None, PAIRS),
    "compat.lightly": lambda z: lightly.NTXentLoss()(z[:8], z[8:]),
    "compat.monai": lambda z: monai.ContrastiveLoss()(z[:8], z[8:]),
    "compat.open_clip": lambda z: open_clip.ClipLoss()(z[:8], z[8:], 10.0),
    "compat.spcl": lambda z: spcl.SelfPacedSupConLoss()(z[:8], z[8:], target=Y[:8]),
    "compat.spcl, mask": lambda z: spcl.SelfPacedSupConLoss()(z[:8], z[8:], mask=MASK),
}


@pytest.mark.parametrize("name", list(LOSSES))
def test_func_grad(name: str) -> None:
    z = Z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(LOSSES[name](z), z)
    assert expected.abs().max() > 0
    torch.testing.assert_close(torch.func.grad(LOSSES[name])(Z), expected, rtol=1e-5, atol=1e-6)


# Their backward is made of differentiable operators.
@pytest.mark.parametrize("name", ["compat.pml NTXent", "compat.spcl, mask"])
def test_a_second_derivative_of_compat(name: str) -> None:
    loss = LOSSES[name] if "pml" in name else masked
    z = Z.double().requires_grad_()
    assert torch.autograd.gradgradcheck(loss, z)


def masked(z: Tensor) -> Tensor:
    loss = spcl.SelfPacedSupConLoss(temperature=0.5, impl="reference")
    return loss(z[:8], z[8:], mask=MASK)


# float16 rows: the gradient is that of the same rows in float64 within a few of its roundings.
@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = BANK.to(dtype)
    gradients: list[Any] = []
    for kind in (dtype, torch.float64):
        monkeypatch.setitem(globals(), "BANK", bank.to(kind))
        z = Z.to(dtype).to(kind).requires_grad_()
        gradients += torch.autograd.grad(LOSSES[name](z), z)
    actual, truth = (x.double() for x in gradients)
    eps = torch.finfo(dtype).eps
    assert ((actual - truth).abs() <= eps / 2 * truth.abs() + 1e-5 * truth.abs().max()).all()


# A row of zeros, and rows longer than float16 holds after they are squared.
def test_monai_in_float16() -> None:
    plain = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0))
    zero = plain.clone()
    zero[0, 2] = 0
    for views in (zero, (plain * 20_000).clamp(-65_000, 65_000)):
        a, b = (x.half().requires_grad_() for x in views)
        loss, twin = monai.ContrastiveLoss()(a, b), lightly.NTXentLoss()(a, b)
        torch.testing.assert_close(loss, twin, rtol=0, atol=1e-3)
        for x, dx in zip((a, b), torch.autograd.grad(loss, (a, b)), strict=True):
            assert dx[x.abs().sum(1) > 0].isfinite().all()  # that of no length is as large as 1e8


# Long rows: s_ij and s_ji are rounded up to exp(100) apart.
@pytest.mark.parametrize("impl", ["reference", "chunked", "native"])
@pytest.mark.parametrize("N", [8, 33])
def test_long_rows(impl: Any, N: int) -> None:
    z = make_embeddings(N, 37, norm=3e4).requires_grad_()
    out = SupConLoss(impl=impl)(z, make_labels(N, 3))
    out.loss.backward()
    assert out.loss.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()
