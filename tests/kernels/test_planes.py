"""Planes: the rows that all kernels read, their norms and sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from spcl_fast.kernels._planes import Planes, num_planes, padded_features, planes_of
from spcl_fast.testing import make_embeddings

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
BLOCK = 128  # rows of a norm and of a sum
PRECISIONS = [(BF16, "highest", 1), (FP16, "high", 1)]
PRECISIONS += [(FP32, "highest", 3), (FP32, "high", 2)]
PRECISIONS += [pytest.param(FP32, "medium", 2, marks=pytest.mark.interpreted)]  # the code of "high"
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda z: z,
    "columns": lambda z: z.T.contiguous().T,
    "every other": lambda z: torch.stack([z, z + 1], 1).flatten(0, 1)[::2],
    "part of a row": lambda z: torch.cat([z + 1, z, z + 2], 1)[:, z.shape[1] : 2 * z.shape[1]],
    "expanded rows": lambda z: z[:1].expand(z.shape),
    "expanded features": lambda z: z[:, :1].expand(z.shape),
}


def blocks(z: Tensor) -> list[Tensor]:
    return [block for block in z.double().split(BLOCK) if len(block) > 0]


def assert_planes_of(planes: Planes, *parts: Tensor) -> None:
    """Assert that planes are those of the rows of some finite matrices, one after the other."""
    z = torch.cat(parts)
    padded = padded_features(z.shape[1])
    assert planes.data.shape == (planes.num_planes, len(z), padded)
    assert planes.data.is_contiguous()
    assert planes.dim == z.shape[1]
    assert not planes.data[:, :, z.shape[1] :].any()
    # A plane holds what the ones before it leave to 8 bits: two 16 and three all 24 of them.
    total = planes.data.double().sum(0)[:, : z.shape[1]]
    allowed = 2.0**-17 if planes.num_planes == 2 else 0.0
    assert ((total - z.double()).abs() <= allowed * z.double().abs()).all()
    of_blocks = [block for part in parts for block in blocks(part)]
    norms = torch.stack([block.norm(dim=1).max() for block in of_blocks])
    torch.testing.assert_close(planes.norms.double(), norms, rtol=1e-6, atol=0)
    sums = torch.stack([block.sum(0) for block in of_blocks])
    sizes = torch.stack([block.abs().sum(0) for block in of_blocks])
    found = planes.sums.double()
    assert (
        (found[:, : z.shape[1]] - sums).abs() <= 2.0**-17 * sizes
    ).all()  # BLOCK terms, one by one
    assert not found[:, z.shape[1] : padded].any()
    squares = torch.stack([block.square().sum() for block in of_blocks])
    torch.testing.assert_close(found[:, padded], squares, rtol=1e-5, atol=0)


# Rows of one block, of several with a ragged last one; features that are padded and are not, and
# that take several steps.
@pytest.mark.parametrize(("dtype", "precision", "count"), PRECISIONS)
@pytest.mark.parametrize(("num_rows", "dim"), [(150, 20), (130, 64), (3, 200), (257, 300)])
def test_planes(
    dtype: torch.dtype, precision: str, count: int, num_rows: int, dim: int, device: str
) -> None:
    torch.set_float32_matmul_precision(precision)
    z = make_embeddings(num_rows, dim, norm=30.0, dtype=dtype, device=device)
    planes = planes_of(z)
    assert planes.num_planes == num_planes(dtype) == count
    assert_planes_of(planes, z)


@pytest.mark.breadth
@pytest.mark.parametrize(("dtype", "precision", "count"), PRECISIONS)
@pytest.mark.parametrize("norm", [1e-15, 1e-3, 1e3, 1e18])
def test_rows_of_any_norm(
    dtype: torch.dtype, precision: str, count: int, norm: float, device: str
) -> None:
    torch.set_float32_matmul_precision(precision)
    if dtype == FP16 and not 1e-3 <= norm <= 1e3:
        pytest.skip("out of range")
    z = make_embeddings(50, 20, norm=norm, dtype=dtype, device=device)
    assert_planes_of(planes_of(z), z)


# Either matrix with the ragged last block; a matrix of less than a block; of no row.
@pytest.mark.parametrize(("num_rows", "num_others"), [(150, 128), (128, 150), (5, 300), (5, 0)])
@pytest.mark.parametrize("dtype", [BF16, pytest.param(FP16, marks=pytest.mark.interpreted), FP32])
def test_two_matrices_in_one_launch(
    num_rows: int, num_others: int, dtype: torch.dtype, device: str
) -> None:
    z = make_embeddings(num_rows, 64, dtype=dtype, device=device)
    others = make_embeddings(num_others, 64, norm=3.0, dtype=dtype, device=device, seed=1)
    assert_planes_of(planes_of(z, others), z, others)


@pytest.mark.breadth
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("dim", [64, 65])
def test_any_strides(layout: str, dtype: torch.dtype, dim: int, device: str) -> None:
    z = make_embeddings(150, dim, dtype=dtype, device=device)
    others = make_embeddings(70, dim, dtype=dtype, device=device, seed=1)
    view = LAYOUTS[layout](z)
    assert_planes_of(planes_of(view), view)
    assert_planes_of(planes_of(view, others), view, others)
    assert_planes_of(planes_of(others, view), others, view)


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_rows_that_are_planes_already_are_not_copied(dtype: torch.dtype, device: str) -> None:
    z = make_embeddings(150, 128, dtype=dtype, device=device)
    assert planes_of(z).data.data_ptr() == z.data_ptr()
    aligned = z[:, :64].contiguous()
    assert planes_of(aligned).data.data_ptr() == aligned.data_ptr()
    # Not contiguous, not padded, not aligned to 16 bytes.
    unaligned = torch.cat([z.flatten(), z[0]])[1 : 1 + 100 * 128].view(100, 128)
    for other in (z[:, :64], z[:, :100].contiguous(), unaligned):
        planes = planes_of(other)
        assert planes.data.data_ptr() != other.data_ptr()
        assert_planes_of(planes, other)


# The first plane has what is not finite, and the others nothing that would make NaN of it.
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_rows_that_are_not_finite(value: float, precision: str, device: str) -> None:
    torch.set_float32_matmul_precision(precision)
    z = make_embeddings(300, 20, device=device)
    z[140, 3] = value
    planes = planes_of(z)
    torch.testing.assert_close(planes.data[0, 140, 3].item(), value, equal_nan=True)
    assert not planes.data[1:, 140, 3].any()
    assert planes.norms.isinf().tolist() == [False, True, False]
    finite = torch.cat([z[:140], z[141:]]).double()
    total = torch.cat([planes.data[:, :140], planes.data[:, 141:]], 1).double().sum(0)[:, :20]
    assert ((total - finite).abs() <= 2.0**-17 * finite.abs()).all()


@pytest.mark.parametrize(
    ("dim", "padded"), [(1, 64), (64, 64), (65, 128), (129, 256), (256, 256), (257, 320)]
)
def test_padded_features(dim: int, padded: int) -> None:
    assert padded_features(dim) == padded


# Rows of more features than a program holds whole: of one or two planes 256, of three 128.
@pytest.mark.parametrize(
    ("dtype", "precision", "dim"),
    [(BF16, "highest", 256), (FP32, "high", 256), (FP32, "highest", 128)],
)
def test_wide_rows(dtype: torch.dtype, precision: str, dim: int, device: str) -> None:
    torch.set_float32_matmul_precision(precision)
    how: Any = {"dtype": dtype, "device": device}
    assert not planes_of(torch.ones(2, dim, **how)).is_wide
    assert planes_of(torch.ones(2, dim + 1, **how)).is_wide
