"""What every backward of `pair_lse` shares: a weight per row, and tiles of h.

The mathematics is in kernels/pair_lse.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from spcl_fast.kernels._pair_lse_pairs import (
    LOG2_E,
    NormedPairs,
    exponent_scale,
    is_bounded,
    rounded_sim,
)
from spcl_fast.kernels._tiles import scalar

# log(2) in two parts, the first with so few bits that its products with small integers are exact.
_LN_2_HIGH = tl.constexpr(0.693359375)
_LN_2_LOW = tl.constexpr(-2.12194440054690583e-4)
_BLOCK = 128


@triton.jit
def gradient_scale(largest_ptr, refs_largest_ptr):
    """Return the power of two that brings 2 max|dlse|, which bounds |h_ij|, to about 2^14.

    float16 then holds every h_ij that matters; 1 where there is no bound.
    """
    largest = tl.maximum(tl.load(largest_ptr), tl.load(refs_largest_ptr))
    exponent = 13.0 - tl.ceil(tl.log2(largest))
    exponent = tl.minimum(tl.maximum(exponent, -100.0), 100.0)
    return tl.where((largest > 0) & (largest < float("inf")), tl.exp2(exponent), 1.0)


@triton.jit
def row_weights_kernel(
    lse_ptr,  # (N,) float32
    dlse_ptr,  # (N,) float32
    norm_ptr,  # () float32
    refs_norm_ptr,  # () float32
    largest_ptr,  # () float32, max|dlse|
    refs_largest_ptr,  # () float32
    weight_ptr,  # (N,) float32, out: of exp(s_ij) if bounded, otherwise of exp(s_ij - lse_i)
    tau,  # number or pointer
    N,
    BLOCK: tl.constexpr,
):
    """Scale dlse_i, and if bounded multiply it by exp(-lse_i): what h_ij needs of a row."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tau = scalar(tau)
    lse = tl.load(lse_ptr + rows, mask=rows < N, other=0.0)
    weight = tl.load(dlse_ptr + rows, mask=rows < N, other=0.0)
    weight *= gradient_scale(largest_ptr, refs_largest_ptr)
    if is_bounded(norm_ptr, refs_norm_ptr, tau):
        # exp(-lse) to the last bits: a product with log2(e) alone would round them off.
        power = tl.floor(lse * LOG2_E)
        rest = (lse - power * _LN_2_HIGH) - power * _LN_2_LOW
        weight *= tl.exp2(-power) * tl.exp2(-rest * LOG2_E)
    tl.store(weight_ptr + rows, weight, mask=rows < N)


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
    IS_SQUARE: tl.constexpr,
    IS_BOUNDED: tl.constexpr,
):
    """Return h_ij = dlse_i p_ij + dlse_j p_ji, scaled; 0 on the diagonal and outside."""
    if IS_BOUNDED:
        h_ij = tl.exp2(dots * exponent_scale(tau)) * (weight_i[:, None] + weight_j[None, :])
    else:
        sim = rounded_sim(dots, tau)
        h_ij = _softmax(sim, lse_i[:, None]) * weight_i[:, None]
        h_ij += _softmax(sim, lse_j[None, :]) * weight_j[None, :]
    if is_edge:
        valid = (rows < N)[:, None] & (cols < M)[None, :]
        if IS_SQUARE:
            valid &= rows[:, None] != cols[None, :]
        h_ij = tl.where(valid, h_ij, 0.0)
    return h_ij


@dataclass(frozen=True)
class Terms:
    """What a backward needs of one side besides its features, float32."""

    lse: Tensor  # (N,)
    weight: Tensor  # (N,)
    largest: Tensor  # () largest |dlse|


def terms_of(
    pairs: NormedPairs,
    lse: Tensor,
    dlse: Tensor,
    lse_refs: Tensor | None,
    dlse_refs: Tensor | None,
) -> tuple[Terms, Terms]:
    """Return the terms of the rows and of the references, the same object if those are the rows."""
    largest = refs_largest = torch.linalg.vector_norm(dlse, math.inf)
    if dlse_refs is not None:
        refs_largest = torch.linalg.vector_norm(dlse_refs, math.inf)

    def terms(lse: Tensor, dlse: Tensor, own_largest: Tensor) -> Terms:
        lse = lse.contiguous()
        weight = torch.empty_like(lse)
        row_weights_kernel[(triton.cdiv(lse.numel(), _BLOCK),)](
            lse,
            dlse.contiguous(),
            pairs.norm,
            pairs.refs_norm,
            largest,
            refs_largest,
            weight,
            pairs.tau,
            lse.numel(),
            BLOCK=_BLOCK,
        )
        return Terms(lse, weight, own_largest)

    rows = terms(lse, dlse, largest)
    if lse_refs is None or dlse_refs is None:
        return rows, rows
    return rows, terms(lse_refs, dlse_refs, refs_largest)


def operands(pairs: NormedPairs, own: Terms, others: Terms) -> tuple[Tensor, ...]:
    """Return the first ten arguments of every backward kernel, from z_ptr to refs_largest_ptr."""
    return (
        pairs.z,
        pairs.refs,
        own.lse,
        own.weight,
        others.lse,
        others.weight,
        pairs.norm,
        pairs.refs_norm,
        own.largest,
        others.largest,
    )
