"""What the kernels of sums share: masks, and sums of exp(sim) over rows and columns of a tile."""

from __future__ import annotations

from spcl_fast.kernels._similarities import LN_2, LOG2_E, finite
from spcl_fast.kernels.hopper._gluon import gl, gluon


@gluon.jit
def masked(dots, rows, cols, N, M, EXCLUDES_SELF: gl.constexpr):
    """Return products, -inf for pairs that are excluded."""
    valid = (rows < N) & (cols < M)
    if EXCLUDES_SELF:
        valid &= rows != cols
    return gl.where(valid, dots, -float("inf"))


@gluon.jit
def in_threads(x):
    """Return a tile (64, owned) as (4, 2, 8, owned): one thread holds both of axis 1."""
    return x.reshape([4, 2, 8, x.shape[1]])


@gluon.jit
def over_threads(x):
    """Return (4, 8, owned) as (32, owned)."""
    return x.reshape([32, x.shape[2]])


@gluon.jit
def log_sums_of_columns(sim):
    """Return the log-sum-exp of each column of a tile."""
    shift = finite(gl.max(sim, 0))
    sums = gl.sum(gl.exp2((sim - shift[None, :]) * LOG2_E), 0)
    return shift + gl.log2(sums) * LN_2


@gluon.jit
def add_rows(sim, shift, sums):
    """Return the shift of each row, and its sum of exp(sim - shift) with those of a tile added."""
    larger = gl.maximum(shift, finite(gl.max(sim, 1)))
    sums *= gl.exp2((shift - larger) * LOG2_E)
    sums += gl.sum(gl.exp2((sim - larger[:, None]) * LOG2_E), 1)
    return larger, sums
