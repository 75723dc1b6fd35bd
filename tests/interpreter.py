"""Repairs of Triton's interpreter, which rounds to bfloat16 towards 0 and multiplies its bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def _wide(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _rounded(x: Any) -> Any:
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).reshape(np.shape(x))
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return TensorHandle(np.where(np.isnan(x), 0x7FC0, nearest).astype(np.uint16), tl.bfloat16)


def repair() -> None:
    """Make casts to bfloat16 and products of it right."""
    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def create_dot(self: Any, a: Any, b: Any, *args: Any) -> Any:
        return dot(self, _wide(a), _wide(b), *args)

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if dst_type.scalar == tl.bfloat16 and src.dtype.scalar == tl.float32:
            return _rounded(src.data)
        return cast(self, src, dst_type)

    InterpreterBuilder.create_dot = create_dot
    InterpreterBuilder.cast_impl = cast_impl
