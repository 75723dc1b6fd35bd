"""Powers of two: by the special function units, or a share of them by multiply-adds.

    2^x = 2^n 2^f,  n = x rounded to an integer,  f = x - n in [-1/2, 1/2]

2^f is a polynomial of degree 5, and n is added to the bits of its exponent.
"""

from __future__ import annotations

from spcl_fast.kernels.hopper._gluon import gl, gluon

# A sum with this number, in float32, ends in the bits of an integer.
_ROUNDER = gl.constexpr(1.5 * 2**23)


@gluon.jit
def exp2_by_fma(x, scale):
    """Return 2^(x scale) where |x scale| <= 125, with a relative error of 2^-22.4 at most.

    Of the special function units it is about the same (2 ulp), and as much as 2^-18.5 with that of
    a product which is rounded first. The polynomial alone has 1.1e-7 at most, and 0 in the mean
    over f: in a sum of many powers a bias would stay.
    """
    rounded = gl.fma(x, scale, _ROUNDER)
    f = gl.fma(x, scale, _ROUNDER - rounded)
    power = gl.fma(f, 0.0013171512400731444, 0.009668862447142601)
    power = gl.fma(power, f, 0.055510930716991425)
    power = gl.fma(power, f, 0.2402230054140091)
    power = gl.fma(power, f, 0.6931466460227966)
    power = gl.fma(power, f, 1.0)
    # The bits of _ROUNDER itself are shifted out.
    bits = power.to(gl.int32, bitcast=True) + (rounded.to(gl.int32, bitcast=True) << 23)
    return bits.to(gl.float32, bitcast=True)


@gluon.jit
def exp2(x, scale, FMA_EXPS: gl.constexpr):
    """Return 2^(x scale) of a tile of products, as `exp2_by_fma` has it in so many of 16 columns.

    A thread has two of eight consecutive columns in a register each: which of both ways a register
    takes is known to the compiler, and nothing is computed twice.
    """
    by_units = gl.exp2(x * scale)
    if FMA_EXPS == 0:
        return by_units
    eighth = gl.arange(0, x.shape[1], layout=gl.SliceLayout(0, x.type.layout)) // 8
    by_fma = eighth * FMA_EXPS % 16 < FMA_EXPS  # spread evenly
    return gl.where(by_fma[None, :], exp2_by_fma(x, scale), by_units)
