"""The pairs of `pair_lse` and their similarities; the mathematics is in kernels/pair_lse.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from spcl_fast.kernels._features import dot_precision, padded_features, row_alignment

LOG2_E = tl.constexpr(1.4426950408889634)
# exp(64) summed over 2^24 rows, and exp(-64), are float32 numbers with room to spare.
_MAX_EXPONENT = tl.constexpr(64.0)
# Float32 gives a sum of fewer terms to the last bits only if the largest is shifted to 1.
_MIN_TERMS = 16
# Partial results may take this much more than z does in float32, so that few rows fill a GPU.
_PART_BYTES = 1 << 24
# The longest rows, in padded features, that a program holds whole. Of 256 features at tf32x3 the
# two halves of every operand would fill the registers.
_WHOLE_ROW = {"tf32": 256, "ieee": 256, "tf32x3": 128}


def is_wide(z: Tensor) -> bool:
    """Return whether rows are too long for a program to hold: it reads them step by step."""
    return padded_features(z.shape[1]) > _WHOLE_ROW[dot_precision(z.dtype)]


@dataclass(frozen=True)
class NormedPairs:
    """Rows z against rows refs, and the norms that decide whether sums are shifted."""

    # Programs to aim at: several for each of about a hundred multiprocessors, which evens out the
    # last ones.
    num_programs: ClassVar[int] = 1024

    z: Tensor  # (N, D)
    refs: Tensor  # (M, D), z itself where is_square
    is_square: bool
    norm: Tensor  # () float32, largest norm of a row of z; inf asks for shifted sums
    refs_norm: Tensor
    tau: float | Tensor

    @classmethod
    def of(cls, z: Tensor, refs: Tensor | None, tau: float | Tensor) -> NormedPairs:
        """Return the pairs of z with itself, or with refs."""
        others = z if refs is None else refs
        if min(z.shape[0], others.shape[0]) < _MIN_TERMS:
            norm = refs_norm = torch.full((), math.inf, device=z.device)
        else:
            norm = refs_norm = _largest_norm(z)
            if refs is not None:
                refs_norm = _largest_norm(refs)
        return cls(z, others, refs is None, norm, refs_norm, tau)

    def swapped(self) -> NormedPairs:
        """Return the same pairs with the references as the owned rows."""
        return NormedPairs(self.refs, self.z, self.is_square, self.refs_norm, self.norm, self.tau)

    def sizes(self) -> tuple[int, int, int]:
        """Return N, M, D."""
        return self.z.shape[0], self.refs.shape[0], self.z.shape[1]

    def strides(self) -> tuple[int, ...]:
        """Return the strides of z and of refs."""
        return *self.z.stride(), *self.refs.stride()

    def constants(self) -> dict[str, Any]:
        """Return the compile-time arguments that all kernels over these pairs take."""
        return {
            "ALIGNMENT": row_alignment(self.z, self.refs),
            "IS_SQUARE": self.is_square,
            "PRECISION": dot_precision(self.z.dtype),
        }

    def part_bytes(self) -> int:
        """Return how much memory partial results may take: O((N + M) D)."""
        return max(4 * (self.z.numel() + self.refs.numel()) // 2, _PART_BYTES)


def _largest_norm(z: Tensor) -> Tensor:
    """Return the largest norm of a row, () float32; NaN if any norm is NaN."""
    norms: Tensor = torch.linalg.vector_norm(z, dim=1, dtype=torch.float32)
    return norms.amax()


@triton.jit
def is_bounded(norm_ptr, refs_norm_ptr, tau):
    """Return whether |s_ij| <= _MAX_EXPONENT for all pairs; False if a norm is NaN."""
    return tl.load(norm_ptr) * tl.load(refs_norm_ptr) < tau * _MAX_EXPONENT


@triton.jit
def exponent_scale(tau):
    """Return log2(e) / tau, correctly rounded: its error enters every exponent."""
    return tl.div_rn(tl.full((), LOG2_E, tl.float32), tau)


@triton.jit
def rounded_sim(dots, tau):
    """Return z_i . z_j / tau, rounded before anything is subtracted from it.

    Where one term dominates, lse_i then equals its sim, and exp(sim - lse_i) is 1 for any size of
    lse_i. The compiler fuses a product with a subtraction, but not an fma.
    """
    one = tl.full((), 1.0, tl.float32)
    inv_tau = tl.div_rn(one, tau)
    rest = tl.fma(-tau, inv_tau, one) * inv_tau  # of 1 / tau
    # Infinite products stay infinite: times a rest of 0 or of the other sign they would become NaN.
    correction = tl.where(tl.abs(dots) < float("inf"), dots * rest, 0.0)
    return tl.fma(dots, inv_tau, correction)
