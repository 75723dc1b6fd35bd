"""The native ops state shapes, dtypes and devices of tensors on a GPU, where there is none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from spcl_fast import native, pair_lse, positive_pair_histogram, positive_pair_loss
from spcl_fast.operands import Label, LabelGradient, Lse, Pairs

CUDA = torch.device("cuda", 0)
MODE = FakeTensorMode()


@pytest.fixture(autouse=True)
def _built_with_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(native, "is_built", lambda: True)
    monkeypatch.setattr(native, "cuda_architectures", lambda: "8.0,9.0+PTX")
    with MODE:
        yield


def on_a_gpu(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return FakeTensor(MODE, torch.empty(shape, dtype=dtype, device="meta"), CUDA)


def facts(x: Tensor) -> tuple[tuple[int, ...], torch.dtype, torch.device]:
    return tuple(x.shape), x.dtype, x.device


# Rows as the tensor cores take them; what is summed up is float32 all the same. A temperature and
# a pace on either device: a number is on the host.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_tensors", [False, True])
def test_forward(dtype: torch.dtype, has_tensors: bool) -> None:
    z, refs = on_a_gpu(40, 300, dtype=dtype), on_a_gpu(9, 300, dtype=dtype)
    labels, ref_labels = (on_a_gpu(n, dtype=torch.int64) for n in (40, 9))
    tau, gamma = (on_a_gpu(), on_a_gpu()) if has_tensors else (0.1, 3.0)
    lse, lse_refs = pair_lse(z, tau, refs=refs, impl="native")
    assert facts(lse) == ((40,), torch.float32, CUDA)
    assert facts(lse_refs) == ((9,), torch.float32, CUDA)
    options: dict[str, Any] = {"tau": tau, "refs": refs, "ref_labels": ref_labels}
    out = positive_pair_loss(z, lse, labels, gamma=gamma, mode="linear", impl="native", **options)
    assert facts(out.loss) == facts(out.weight_sum) == ((40,), torch.float32, CUDA)
    assert facts(out.num_pos) == ((40,), torch.int64, CUDA)
    counts = positive_pair_histogram(z, lse, labels, upper=9.0, bins=7, impl="native", **options)
    assert facts(counts) == ((7,), torch.int64, CUDA)


# A label of every kind joins the gradient; of more than 8 the sum is float32.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward(dtype: torch.dtype) -> None:
    z, refs = on_a_gpu(40, 300, dtype=dtype), on_a_gpu(9, 300, dtype=dtype)
    row, col = on_a_gpu(40), on_a_gpu(9)
    needs: dict[str, Any] = {"needs_z": True, "needs_refs": True}
    lse = Lse(row, col, on_a_gpu(0))
    dz, drefs = native.pair_lse_bwd(Pairs(z, refs, 0.1), lse, row, col, **needs)
    assert dz is not None
    assert drefs is not None
    assert (facts(dz), facts(drefs)) == (facts(z), facts(refs))
    labels = on_a_gpu(40, dtype=torch.int64)
    ways = [(3.0, None), (math.inf, None), (3.0, 1.0)]
    gradients = [LabelGradient(Label(labels, gamma, window), row) for gamma, window in ways]
    for k in (1, 3, 9):
        pairs, lse = Pairs(z, None, 0.1), Lse(row, None, on_a_gpu(0))
        dz = native.contrastive_rows_bwd(pairs, lse, row, (gradients * 3)[:k], "linear")
        assert facts(dz) == ((40, 300), torch.float32 if k == 9 else dtype, CUDA)


class Operators(TorchDispatchMode):
    """Records the names of all operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


# The passes over the pairs are those of one op in each direction, whatever the labels are, and what
# the forward finds of labels the backward takes; more than 8 labels have ops of their own.
@pytest.mark.parametrize("num_labels", [1, 3, 9])
def test_labels_share_one_op(num_labels: int) -> None:
    z = on_a_gpu(42, 300, dtype=torch.bfloat16)
    ways = [(3.0, None), (math.inf, None), (3.0, 1.0)] * 3
    labels = [Label(on_a_gpu(42, dtype=torch.int64), *way) for way in ways[:num_labels]]
    with Operators() as operators:
        lse, rows = native.contrastive_rows_fwd(
            Pairs(z, None, 0.1), labels, "linear", has_backward=True
        )
    assert len(rows) == num_labels
    for row in rows:
        assert facts(row.loss) == facts(row.weight_sum) == ((42,), torch.float32, CUDA)
        assert facts(row.num_pos) == ((42,), torch.int64, CUDA)
    assert lse.cache is not None
    order = (3 * 44 * num_labels,), torch.int32, CUDA
    assert facts(lse.cache) == (facts(on_a_gpu(0)) if num_labels == 9 else order)
    has_own = any("positive_pair_loss" in name for name in operators.names)
    assert has_own == (num_labels == 9)


# Tiles of the forward are cached in the memory of the host alone.
def test_nothing_is_cached_on_a_gpu() -> None:
    lse = native.pair_lse_fwd(Pairs(on_a_gpu(600, 8), None, 0.1), has_backward=True)
    assert lse.cache is not None
    assert lse.cache.shape == (0,)
    assert native.tile_cache.cache_size(600, None) > 0
