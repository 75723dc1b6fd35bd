"""Repairs of Triton's interpreter, which rounds to bfloat16 towards 0 and multiplies its bits.

It also rounds the product of an fma.

A third of its time goes into looking for what it has patched already and building the table of
dtypes, at each call of a function and for each value: both happen once here.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle


def _wide(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _rounded(x: Any) -> Any:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).reshape(np.shape(x))
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return TensorHandle(np.where(np.isnan(x), 0x7FC0, nearest).astype(np.uint16), tl.bfloat16)


def _patch_once() -> None:
    """Patch the language once a launch, and not again for each function that a kernel calls."""
    patch, launch = interpreter._patch_lang, GridExecutor.__call__
    patched: set[tuple[bool, bool]] = set()

    def patch_lang(function: Any) -> Any:
        seen = [value for value in function.__globals__.values() if isinstance(value, ModuleType)]
        sees = tl in seen, tl.core in seen
        if sees in patched:
            return None
        patched.add(sees)
        return patch(function)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        patched.clear()  # what the launch before patched it has restored
        return launch(self, *args, **kwargs)

    interpreter._patch_lang, GridExecutor.__call__ = patch_lang, call


def _remember_dtypes() -> None:
    find = interpreter._get_np_dtype
    found: dict[str, Any] = {}

    def get_np_dtype(dtype: Any) -> Any:
        if dtype.name not in found:
            found[dtype.name] = find(dtype)
        return found[dtype.name]

    interpreter._get_np_dtype = get_np_dtype


def _fma(_: Any, x: Any, y: Any, z: Any) -> Any:
    """Return x y + z of float32, whose product float64 holds exactly."""
    total = x.data.astype(np.float64) * y.data + z.data
    return TensorHandle(total.astype(z.data.dtype), z.dtype.scalar)


def repair() -> None:
    """Make casts to bfloat16, products of it and fma right, and all of it quicker."""
    _patch_once()
    _remember_dtypes()
    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def create_dot(self: Any, a: Any, b: Any, *args: Any) -> Any:
        return dot(self, _wide(a), _wide(b), *args)

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if dst_type.scalar == tl.bfloat16 and src.dtype.scalar == tl.float32:
            return _rounded(src.data)
        return cast(self, src, dst_type)

    InterpreterBuilder.create_dot = create_dot
    InterpreterBuilder.cast_impl = cast_impl
    InterpreterBuilder.create_fma = _fma


def add_in_steps() -> None:
    """Add products as tensor cores do, 16 in a step, whose sum is rounded once; after `repair`.

    A product of two rows is then the same whichever comes first. NumPy's depends on their place.
    """

    def create_dot(_: Any, a: Any, b: Any, total: Any, *_options: Any) -> Any:
        a, b = (_wide(x).data.astype(np.float64) for x in (a, b))
        rounded = total.data
        for k in range(0, a.shape[-1], 16):
            step = a[..., k : k + 16] @ b[..., k : k + 16, :]
            rounded = (rounded + step).astype(total.data.dtype)
        return TensorHandle(rounded, total.dtype.scalar)

    InterpreterBuilder.create_dot = create_dot
