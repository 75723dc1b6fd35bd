"""The pairs that kernels visit, and similarities; the mathematics is in kernels/pair_lse.py."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from spcl_fast.kernels._planes import Planes, planes_of

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# log(2) in two parts, the first with so few bits that its products with small integers are exact.
LN_2_HIGH = tl.constexpr(0.693359375)
LN_2_LOW = tl.constexpr(-2.12194440054690583e-4)
FLOAT32_MAX = tl.constexpr(3.4028234663852886e38)
# exp(64) summed over 2^24 rows, and exp(-64), are float32 numbers with room to spare.
_MAX_EXPONENT = tl.constexpr(64.0)
# Float32 gives a sum of fewer terms to the last bits only if the largest is shifted to 1.
_MIN_TERMS = tl.constexpr(16)
_BLOCK = tl.constexpr(1024)
# Partial results may take this much more than z does in float32, so that few rows fill a GPU.
_PART_BYTES = 1 << 24


@dataclass(frozen=True)
class PlanePairs:
    """Rows against columns.

    columns           excluded   of use to
    the rows          j = i      both
    the rows and more j = i      rows
    references        none       both
    """

    # Programs to aim at: several for each of about a hundred multiprocessors, which evens out the
    # last ones.
    num_programs: ClassVar[int] = 1024

    rows: Planes
    cols: Planes
    num_rows: int  # N; the columns may be more rows of the same planes
    num_cols: int  # M
    tau: float | Tensor
    excludes_self: bool

    @classmethod
    def of(cls, z: Tensor, refs: Tensor | None, tau: float | Tensor) -> PlanePairs:
        """Return the pairs of z (N, D) with itself, or with refs (M, D)."""
        rows = planes_of(z)
        cols = rows if refs is None else planes_of(refs)
        num_cols = z.shape[0] if refs is None else refs.shape[0]
        return cls(rows, cols, z.shape[0], num_cols, tau, refs is None)

    def swapped(self) -> PlanePairs:
        """Return the same pairs with the columns as the rows."""
        sides = self.cols, self.rows, self.num_cols, self.num_rows
        return PlanePairs(*sides, self.tau, self.excludes_self)

    @property
    def is_square(self) -> bool:
        """Return whether pair (j, i) is one of these wherever (i, j) is."""
        return self.excludes_self and self.num_rows == self.num_cols

    @property
    def is_wide(self) -> bool:
        """Return whether rows are longer than a program holds."""
        return self.rows.is_wide

    def bounds(self) -> tuple[Any, ...]:
        """Return the arguments of `is_bounded`."""
        norms = self.rows.norms, self.cols.norms
        counts = norms[0].shape[0], norms[1].shape[0]
        return *norms, *counts, self.num_rows, self.num_cols, as_scalar(self.tau)

    def planes(self) -> tuple[Any, ...]:
        """Return both matrices and the strides between their planes."""
        return self.rows.data, self.cols.data, self.rows.stride, self.cols.stride

    def part_bytes(self) -> int:
        """Return how much memory partial results may take: O((N + M) D)."""
        return max(2 * (self.num_rows + self.num_cols) * self.rows.dim, _PART_BYTES)


def device_of(z: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which kernels are launched on the device of `z`."""
    return torch.cuda.device(z.device) if z.is_cuda else nullcontext()


def as_scalar(value: float | Tensor) -> float | Tensor:
    """Return a scalar argument of a kernel: an int would be compiled into the kernel."""
    return value if isinstance(value, (Tensor, float)) else float(value)


@triton.jit
def scalar(value):
    """Return a float32 argument that is a number or a pointer to one."""
    if isinstance(value, tl.tensor):
        if value.dtype.is_ptr():
            value = tl.load(value)
        return value.to(tl.float32)
    return tl.cast(value, tl.float32)  # the interpreter leaves a Python float as it is


@triton.jit
def _largest(ptr, count):
    largest = tl.zeros((_BLOCK,), tl.float32)
    for first in range(0, count, _BLOCK):
        place = first + tl.arange(0, _BLOCK)
        largest = tl.maximum(largest, tl.load(ptr + place, mask=place < count, other=0.0))
    return tl.max(largest, 0)


@triton.jit
def is_bounded(norms_ptr, col_norms_ptr, num_norms, num_col_norms, N, M, tau):
    """Return whether |s_ij| <= _MAX_EXPONENT for all pairs, and there are several."""
    bound = _largest(norms_ptr, num_norms) * _largest(col_norms_ptr, num_col_norms)
    return holds_bound(bound, N, M, tau)


@triton.jit
def holds_bound(bound, N, M, tau):
    """Return whether `bound` / tau, of |s_ij|, is small enough."""
    return (bound < tau * _MAX_EXPONENT) & (N >= _MIN_TERMS) & (M >= _MIN_TERMS)


@triton.jit
def exponent_scale(tau):
    """Return log2(e) / tau, correctly rounded: its error enters every exponent."""
    return tl.div_rn(tl.cast(LOG2_E, tl.float32), tau)


@triton.jit
def inverse(x):
    """Return 1 / x, correctly rounded, for similarities to be as exact as in every other pass."""
    return tl.div_rn(tl.cast(1.0, tl.float32), x)


@triton.jit
def rounded_sim(dots, tau):
    """Return z_i . z_j / tau, rounded before anything is subtracted from it.

    Where one term dominates, lse_i then equals its sim, and exp(sim - lse_i) is 1 for any size of
    lse_i. The compiler fuses a product with a subtraction, but not an fma.
    """
    inv_tau = inverse(tau)
    rest = tl.fma(-tau, inv_tau, tl.cast(1.0, tl.float32)) * inv_tau  # of 1 / tau
    # Infinite products stay infinite: times a rest of 0 or of the other sign they would become NaN.
    correction = tl.where(tl.abs(dots) < float("inf"), dots * rest, 0.0)
    return tl.fma(dots, inv_tau, correction)


@triton.jit
def finite(shift):
    """Clamp a shift to finite numbers: inf - inf would turn infinite sums into NaN."""
    return tl.minimum(tl.maximum(shift, -FLOAT32_MAX), FLOAT32_MAX)


@triton.jit
def log_of_sum(total):
    """Return log(total), rounded about once, for sums of exp(s_ij) that nothing shifts.

    log2(total) is rounded relative to its size of up to 116, and a GPU's is off by four times that:
    the exponent is taken out, and log2 left with a number from 1 to 2.
    """
    bits = total.to(tl.int32, bitcast=True)
    power = ((bits >> 23) - 127).to(tl.float32)
    mantissa = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    return power * LN_2_HIGH + (power * LN_2_LOW + tl.log2(mantissa) * LN_2)
