"""What was found out about tensors is found again for those like them, and for no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast import InfoNCELoss, SupConLoss, native
from spcl_fast.alike import Alike
from spcl_fast.ops import infonce_terms


def test_tensors_like_those_of_before() -> None:
    alike: Alike[str] = Alike()
    alike.put("key", (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)), "found")
    assert alike.get("key", (torch.ones(4, 3), torch.arange(4))) == "found"
    assert alike.get("another", (torch.ones(4, 3), torch.arange(4))) is None
    alike.clear()
    assert alike.get("key", (torch.ones(4, 3), torch.arange(4))) is None


@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(4, 3, dtype=torch.float64),
        torch.zeros(3, 4),
        torch.zeros(12),
        torch.zeros(3, 4).T,
        torch.zeros(4, 3, device="meta"),
        torch.zeros(4, 3, requires_grad=True),
        torch.nn.Parameter(torch.zeros(4, 3), requires_grad=False),
        torch.zeros(4, 3).to_sparse(),
        torch.zeros(4, 3).numpy(),
        None,
    ],
)
def test_what_is_not_like_it(other: Tensor) -> None:
    alike: Alike[str] = Alike()
    alike.put("key", (torch.zeros(4, 3),), "found")
    assert alike.get("key", (other,)) is None
    assert alike.get("key", (torch.zeros(4, 3),)) == "found"


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_under_a_transform(transform: Callable[..., Callable[[Tensor], Tensor]]) -> None:
    alike: Alike[str] = Alike()
    plain, asked = torch.zeros(4, 3), []
    alike.put("key", (plain,), "found")

    def function(x: Tensor) -> Tensor:
        asked.extend([alike.get("key", (x[0],)), alike.get("key", (plain,))])
        return x.sum()

    transform(function)(torch.zeros(2, 4, 3))
    assert asked == [None, None]


def test_few_of_one_key_are_kept() -> None:
    alike: Alike[int] = Alike()
    for n in range(1, 40):
        alike.put("key", (torch.zeros(n),), n)
    found = [alike.get("key", (torch.zeros(n),)) for n in range(1, 40)]
    assert found == [None] * 23 + list(range(24, 40))


def test_few_keys_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spcl_fast.alike._MOST_KEYS", 2)
    alike: Alike[int] = Alike()
    for key in range(5):
        for n in (1, 2):
            alike.put(key, (torch.zeros(n),), n)
        assert len(alike) <= 2
        assert [alike.get(key, (torch.zeros(n),)) for n in (1, 2)] == [1, 2]


def test_one_tensor_given_twice_is_like_none() -> None:
    alike: Alike[str] = Alike()
    x = torch.zeros(3)
    alike.put("key", (x, x), "found")
    assert len(alike) == 0
    alike.put("key", (x, torch.zeros(3)), "found")
    assert alike.get("key", (x, x)) is None
    assert alike.get("key", (x, x.detach())) == "found"


# What was checked once is not checked again, so what differs must be.
def test_other_arguments_are_checked_after_good_ones() -> None:
    z, labels = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    for _ in range(2):
        SupConLoss()(z, labels)
        infonce_terms(z, z, 0.1, symmetric=True)
    with pytest.raises(ValueError, match=r"labels must be \(4,\)"):
        SupConLoss()(z, labels[:3])
    with pytest.raises(TypeError, match="labels must be integer"):
        SupConLoss()(z, labels.float())
    with pytest.raises(TypeError, match="refs must have the dtype of anchors"):
        infonce_terms(z, z.double(), 0.1, symmetric=True)
    with pytest.raises(ValueError, match="refs must have 4 rows as anchors"):
        infonce_terms(z, torch.randn(5, 3), 0.1, symmetric=True)


# Tensors of torch.func have no memory that an implementation could read.
@pytest.mark.skipif(not native.is_built(), reason="no other implementation has them in one op here")
def test_rows_that_outlived_their_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, outlived, addresses = torch.tensor([0, 0, 1, 1]), [], []
    torch.func.grad(lambda x: (outlived.append(x), x.sum())[1])(torch.randn(4, 3))
    (z,) = outlived

    def recording(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(pairs: Any, *args: Any, **named: Any) -> Any:
            addresses.append(pairs.z.data_ptr())
            return forward(pairs, *args, **named)

        return run

    for name in ("contrastive_terms_fwd", "infonce_terms_fwd"):
        monkeypatch.setattr(native, name, recording(getattr(native, name)))
    for _ in range(2):
        SupConLoss(impl="native")(z, labels)
        InfoNCELoss(impl="native")(z, torch.randn(4, 3))
    assert len(addresses) == 4
