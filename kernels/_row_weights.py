"""What every backward of `pair_lse` shares: a weight for each row, and tiles of h.

The mathematics is in kernels/pair_lse.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from spcl_fast.kernels._bound import bound, cdiv
from spcl_fast.kernels._similarities import (
    LN_2_HIGH,
    LN_2_LOW,
    LOG2_E,
    PlanePairs,
    exponent_scale,
    is_bounded,
    rounded_sim,
    scalar,
)

_BLOCK = 256


@triton.jit
def gradient_scale(bound):
    """Return the power of two that brings 2 max|dlse|, which bounds |h_ij|, to about 2^14.

    float16 then holds every h_ij that matters; 1 where there is no bound.
    """
    exponent = 13.0 - tl.ceil(tl.log2(bound))
    exponent = tl.minimum(tl.maximum(exponent, -100.0), 100.0)
    return tl.where((bound > 0) & (bound < float("inf")), tl.exp2(exponent), 1.0)


@triton.jit
def scaled_weight(dlse, lse, scale, bounded):
    """Return dlse_i scaled, and if bounded times exp(-lse_i): what h_ij needs of a row."""
    weight = dlse * scale
    # exp(-lse) to the last bits: a product with log2(e) alone would round them off.
    power = tl.floor(lse * LOG2_E)
    rest = (lse - power * LN_2_HIGH) - power * LN_2_LOW
    exps = tl.exp2(-power) * tl.exp2(-rest * LOG2_E)
    return tl.where(bounded, weight * exps, weight)


@bound
@triton.jit
def row_weights_kernel(
    norms_ptr,
    col_norms_ptr,
    num_norms,
    num_col_norms,
    N,
    M,
    tau,  # number or pointer
    lse_ptr,  # (N,) float32
    dlse_ptr,  # (N,) float32
    col_lse_ptr,  # (M,) float32, or None
    col_dlse_ptr,  # (M,) float32, or None
    bound_ptr,  # () float32, of |dlse| on both sides
    weight_ptr,  # (N,) float32, out: of exp(s_ij) if bounded, otherwise of exp(s_ij - lse_i)
    col_weight_ptr,  # (M,) float32, out, or None
    BLOCK: tl.constexpr,
):
    """Weigh rows, and with program_id(1) = 1 columns."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    bounded = is_bounded(norms_ptr, col_norms_ptr, num_norms, num_col_norms, N, M, scalar(tau))
    scale = gradient_scale(tl.load(bound_ptr))
    if tl.program_id(1) == 0:
        dlse = tl.load(dlse_ptr + place, mask=place < N, other=0.0)
        lse = tl.load(lse_ptr + place, mask=place < N, other=0.0)
        tl.store(weight_ptr + place, scaled_weight(dlse, lse, scale, bounded), mask=place < N)
    elif col_lse_ptr is not None:
        dlse = tl.load(col_dlse_ptr + place, mask=place < M, other=0.0)
        lse = tl.load(col_lse_ptr + place, mask=place < M, other=0.0)
        tl.store(col_weight_ptr + place, scaled_weight(dlse, lse, scale, bounded), mask=place < M)


@triton.jit
def _softmax(sim, lse):
    """Return exp(sim - lse), at most 1 even if both are so large that rounding exceeds 1."""
    return tl.exp2(tl.minimum(sim - lse, 0.0, propagate_nan=tl.PropagateNan.ALL) * LOG2_E)


@triton.jit
def h_tile(
    dots,  # (rows, cols)
    rows,
    cols,
    N,
    M,
    weight_i,
    lse_i,
    weight_j,
    lse_j,
    tau,
    is_edge,
    EXCLUDES_SELF: tl.constexpr,
    IS_BOUNDED: tl.constexpr,
    scale=None,  # exponent_scale(tau), if a loop has it
):
    """Return h_ij = dlse_i p_ij + dlse_j p_ji, scaled; 0 for pairs that are excluded."""
    if IS_BOUNDED:
        if scale is None:
            scale = exponent_scale(tau)
        h_ij = tl.exp2(dots * scale) * (weight_i[:, None] + weight_j[None, :])
    else:
        sim = rounded_sim(dots, tau)
        h_ij = _softmax(sim, lse_i[:, None]) * weight_i[:, None]
        h_ij += _softmax(sim, lse_j[None, :]) * weight_j[None, :]
    if is_edge:
        valid = (rows < N)[:, None] & (cols < M)[None, :]
        if EXCLUDES_SELF:
            valid &= rows[:, None] != cols[None, :]
        h_ij = tl.where(valid, h_ij, 0.0)
    return h_ij


class RowWeights(NamedTuple):
    """What a backward needs of both sides besides their planes, float32."""

    lse: Tensor  # (N,)
    weight: Tensor  # (N,)
    col_lse: Tensor  # (M,)
    col_weight: Tensor  # (M,)
    bound: Tensor  # () of |dlse|

    def swapped(self) -> RowWeights:
        """Return the same with the columns as the rows."""
        return RowWeights(self.col_lse, self.col_weight, self.lse, self.weight, self.bound)


def row_weights(
    pairs: PlanePairs,
    lse: Tensor,
    dlse: Tensor,
    col_lse: Tensor | None,
    col_dlse: Tensor | None,
) -> RowWeights:
    """Return the weights of both sides, one and the same for square pairs."""
    bound = torch.linalg.vector_norm(dlse, float("inf"))
    if col_dlse is not None:
        bound = torch.maximum(bound, torch.linalg.vector_norm(col_dlse, float("inf")))
    lse, weight = lse.contiguous(), torch.empty_like(dlse, memory_format=torch.contiguous_format)
    col_weight: Any = None
    if col_lse is not None and col_dlse is not None:
        col_lse, col_dlse = col_lse.contiguous(), col_dlse.contiguous()
        col_weight = torch.empty_like(col_dlse)
    longest = max(pairs.num_rows, 0 if col_lse is None else pairs.num_cols)
    row_weights_kernel[(cdiv(longest, _BLOCK), 1 if col_lse is None else 2)](
        *pairs.bounds(),
        lse,
        dlse.contiguous(),
        col_lse,
        col_dlse,
        bound,
        weight,
        col_weight,
        BLOCK=_BLOCK,
    )
    if col_lse is None:
        return RowWeights(lse, weight, lse, weight, bound)
    return RowWeights(lse, weight, col_lse, col_weight, bound)
