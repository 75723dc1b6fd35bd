"""Launches of kernels/_class_kernels.py, where its mathematics is."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from spcl_fast.kernels._bound import cdiv
from spcl_fast.kernels._class_kernels import (
    class_backward_kernel,
    class_forward_kernel,
    class_sums_kernel,
)
from spcl_fast.kernels._order import Order
from spcl_fast.kernels._similarities import PlanePairs, as_scalar
from spcl_fast.operands import PositivePairLoss

# Rows at which the pieces of a program begin.
_ROWS = 8
# Rows that are added beside each other, of a block and of a piece, and features of a step.
BLOCKS = {"BLOCK": 128, "BLOCK_D": 64}
# As many columns a program adds itself: few steps cost less than a launch.
_FEW = 512


class BlockSums(NamedTuple):
    """Sums of blocks of sorted columns, each kind in 1 / 64 of the bytes of a plane."""

    order: Order
    sums: Tensor  # (kinds, M // BLOCK, DP) float32, out

    @classmethod
    def of(cls, pairs: PlanePairs, order: Order, kinds: int = 1) -> BlockSums | None:
        """Return where the sums go, None if columns are few."""
        if pairs.num_cols <= _FEW:
            return None
        shape = kinds, pairs.num_cols // BLOCKS["BLOCK"], pairs.rows.padded_dim
        return cls(order, pairs.cols.norms.new_empty(shape))

    def fill(self, pairs: PlanePairs, col_c: Tensor | None) -> None:
        """Fill the sums in a launch of their own, the last ones times col_c if that is given."""
        kinds, blocks, padded = self.sums.shape
        class_sums_kernel[(blocks, cdiv(padded, BLOCKS["BLOCK_D"]), kinds)](
            pairs.cols.data,
            pairs.cols.stride,
            col_c,
            *self.order,
            self.sums,
            pairs.num_rows,
            pairs.num_cols,
            0 if col_c is None else col_c.shape[0],
            DP=padded,
            P=pairs.rows.num_planes,
            **BLOCKS,
        )


def summing(
    pairs: PlanePairs, block_sums: BlockSums | None
) -> tuple[int, tuple[Any, ...], dict[str, int]]:
    """Return for merge_parts_kernel how many programs sum blocks, its arguments and constants."""
    if block_sums is None:
        nothing = {"DP": 0, "P": 1, "CLASS_BLOCK": 0, "BLOCK_D": 1}
        return 0, (None, 0, None, None, None), nothing
    _, count, padded = block_sums.sums.shape
    arguments = pairs.cols.data, pairs.cols.stride, *block_sums.order, block_sums.sums
    constants = {"DP": padded, "P": pairs.rows.num_planes, "CLASS_BLOCK": BLOCKS["BLOCK"]}
    block_d = BLOCKS["BLOCK_D"]
    return count * cdiv(padded, block_d), arguments, {**constants, "BLOCK_D": block_d}


def fill_class_losses(
    pairs: PlanePairs, lse: Tensor, order: Order, sums: Tensor | None, out: PositivePairLoss
) -> None:
    """Fill the losses of the rows; sums if known."""
    N = pairs.num_rows
    if sums is None:
        block_sums = BlockSums.of(pairs, order)
        if block_sums is not None:
            block_sums.fill(pairs, None)
            sums = block_sums.sums
    class_forward_kernel[(cdiv(N, _ROWS),)](
        *pairs.planes(),
        lse,
        *order,
        sums,
        *out,
        as_scalar(pairs.tau),
        N,
        pairs.num_cols,
        ROWS=_ROWS,
        **_constants(pairs),
    )


def add_class_gradient(
    pairs: PlanePairs,
    order: Order,
    c: Tensor | None,
    col_c: Tensor | None,
    sums: Tensor | None,
    *,
    is_even: bool,
    parts: Tensor,
    dz: Tensor,
) -> None:
    """Fill dz with the sum of the parts and the gradient of the losses; sums if known.

    If even, a class has one c, of its rows and of them as columns: weighted sums are multiples.
    """
    N, dim, padded = pairs.num_rows, pairs.rows.dim, pairs.rows.padded_dim
    col_c = None if is_even else col_c
    has_plain, has_weighted = c is not None and sums is None, col_c is not None
    weighted = None
    if has_plain or has_weighted:
        block_sums = BlockSums.of(pairs, order, has_plain + has_weighted)
        if block_sums is not None:
            block_sums.fill(pairs, col_c)
            sums = block_sums.sums if has_plain else sums
            weighted = block_sums.sums[-1] if has_weighted else None
    class_backward_kernel[(cdiv(N, _ROWS), cdiv(padded, BLOCKS["BLOCK_D"]))](
        *pairs.planes(),
        c,
        col_c,
        *order,
        sums,
        weighted,
        parts,
        dz,
        as_scalar(pairs.tau),
        parts.shape[0],
        N,
        pairs.num_cols,
        0 if col_c is None else col_c.shape[0],
        dim,
        SIDES=2 if is_even else 1,
        ROWS=_ROWS,
        **_constants(pairs),
        num_warps=8,  # of 4 warps the registers would not suffice
    )


def _constants(pairs: PlanePairs) -> dict[str, Any]:
    rows = pairs.rows
    sizes = {"DP": rows.padded_dim, "P": rows.num_planes, "EXCLUDES_SELF": pairs.excludes_self}
    return {**sizes, **BLOCKS}
