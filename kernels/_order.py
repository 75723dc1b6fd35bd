"""Labels sorted on the device, so that the positives of a row are one interval of columns.

Every bound is found with the comparison that defines a positive pair, in float64
|y_i - y_j| <= window: differences are rounded, and rounding is monotonic. Few labels are ordered
by one kernel that counts, for each, how many others come before it and before the ends of its
interval; more by torch.sort and bisection. No value is copied to the host.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from spcl_fast.kernels._bound import bound, cdiv

# N^2 comparisons of integers cost less than the launches of a sort up to here.
MAX_COUNTED = 8192
_BLOCK = tl.constexpr(32)  # rows of a program
_STEP = tl.constexpr(64)  # of the others, compared at a time
_BISECTED_BLOCK = 128


class Order(NamedTuple):
    """Both sides in the stable order of their labels, the same tensor if the columns are the rows.

    A side is (3, N) int32: the row at each sorted position, and at which positions of the other
    side its positives begin and end, both 0 for none. A row is in its own interval.
    """

    rows: Tensor
    """(3, N)."""
    cols: Tensor
    """(3, M)."""


class Counted(NamedTuple):
    """Labels that planes_kernel orders on its way, which needs no launch of its own."""

    labels: Tensor  # (N,)
    window: float | None
    side: Tensor  # (3, N), out

    @classmethod
    def of(cls, labels: Tensor, window: float | None) -> Counted | None:
        """Return the labels of the rows and a side for them, None if they are too many to count."""
        if labels.shape[0] > MAX_COUNTED:
            return None
        return cls(labels, window, _new_side(labels))

    @property
    def num_programs(self) -> int:
        """Return how many programs order them."""
        return cdiv(self.labels.shape[0], _BLOCK.value)

    def arguments(self) -> tuple[Any, ...]:
        """Return labels, side, bits of the window and stride."""
        return self.labels, self.side, _bits(self.window), self.labels.stride(0)


def order_of(
    labels: Tensor,
    col_labels: Tensor | None,
    window: float | None,
    *,
    excludes_self: bool = False,
) -> Order:
    """Order labels (N,) and col_labels (M,): integers, or with a window any real dtype.

    Args:
        labels: of the rows.
        col_labels: of the columns, None if those are the rows.
        window: None for equal labels.
        excludes_self: whether the first N of col_labels are the rows.
    """
    is_square = col_labels is None
    others = labels if col_labels is None else col_labels
    num_own = labels.shape[0] if is_square or excludes_self else 0
    if max(labels.shape[0], others.shape[0]) <= MAX_COUNTED:
        rows = _counted(labels, others, window, num_own, is_square=is_square)
        if is_square:
            return Order(rows, rows)
        return Order(rows, _counted(others, labels, window, num_own, is_square=False))
    own = _Sorted.of(labels, window)
    if is_square:
        rows = _bisected(own, own, window, num_own)
        return Order(rows, rows)
    other = _Sorted.of(others, window)
    rows = _bisected(own, other, window, num_own)
    return Order(rows, _bisected(other, own, window, num_own))


class _Sorted(NamedTuple):
    keys: Tensor
    order: Tensor

    @classmethod
    def of(cls, labels: Tensor, window: float | None) -> _Sorted:
        return cls(*torch.sort(_keys(labels, window), stable=True))


def _counted(
    labels: Tensor, others: Tensor, window: float | None, num_own: int, *, is_square: bool
) -> Tensor:
    """Return one side, (3, N), of few labels."""
    num_rows, side = labels.shape[0], _new_side(labels)
    _count_kernel[(cdiv(num_rows, _BLOCK.value),)](
        labels,
        others,
        side,
        _bits(window),
        num_rows,
        others.shape[0],
        labels.stride(0),
        others.stride(0),
        num_own,
        IS_SQUARE=is_square,
        HAS_WINDOW=window is not None,
    )
    return side


def _bisected(own: _Sorted, others: _Sorted, window: float | None, num_own: int) -> Tensor:
    """Return one side, (3, N), of many labels."""
    num_rows, num_others = own.keys.shape[0], others.keys.shape[0]
    side = _new_side(own.keys)
    _interval_kernel[(cdiv(num_rows, _BISECTED_BLOCK),)](
        *own,
        others.keys,
        side,
        _bits(window),
        num_rows,
        num_others,
        num_others.bit_length(),
        num_own,
        HAS_WINDOW=window is not None,
        BLOCK=_BISECTED_BLOCK,
    )
    return side


def _new_side(labels: Tensor) -> Tensor:
    return torch.empty(3, labels.shape[0], dtype=torch.int32, device=labels.device)


def _bits(window: float | None) -> int:
    """Return a window as an integer of its bits: a float would become float32 on its way."""
    (bits,) = struct.unpack("q", struct.pack("d", 0.0 if window is None else window))
    return int(bits)


def _keys(labels: Tensor, window: float | None) -> Tensor:
    """Return keys as `_key` has them; NaN is sorted to the end."""
    if window is None:
        return labels.long().clamp_min(-1)
    keys = labels.double()
    return torch.where((keys >= 0) & keys.isfinite(), keys, torch.nan)


@triton.jit
def _key(ptr, place, is_row, HAS_WINDOW: tl.constexpr):
    """Return keys, int64 or float64, unknown ones -1 or NaN."""
    label = tl.load(ptr + place, mask=is_row, other=0)
    if HAS_WINDOW:
        if label.dtype == tl.bfloat16:
            label = label.to(tl.float32)
        label = label.to(tl.float64)
        key = tl.where((label >= 0) & (label < float("inf")), label, float("nan"))
    else:  # returns of two types would not compile
        key = tl.maximum(label.to(tl.int64), -1)
    return key


@triton.jit
def _is_before(other, key, window, HAS_WINDOW: tl.constexpr):
    """Return which others lie before the interval of a key."""
    return key - other > window if HAS_WINDOW else other < key


@triton.jit
def _is_before_end(other, key, window, HAS_WINDOW: tl.constexpr):
    """Return which others lie before the end of the interval of a key; False for NaN."""
    return other - key <= window if HAS_WINDOW else other <= key


@triton.jit
def _comes_first(other, j, key, i, HAS_WINDOW: tl.constexpr):
    """Return which others are sorted before a key."""
    is_less, is_equal = other < key, other == key
    if HAS_WINDOW:  # NaN comes last
        is_less |= (other == other) & (key != key)
        is_equal |= (other != other) & (key != key)
    return is_less | (is_equal & (j < i))


@bound
@triton.jit(do_not_specialize=["window_bits"])
def _count_kernel(
    labels_ptr,  # (N,)
    others_ptr,  # (M,)
    side_ptr,  # (3, N), out
    window_bits,
    N,
    M,
    stride,
    other_stride,
    num_own,  # rows below are in their own interval
    IS_SQUARE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    count_rows(
        tl.program_id(0), labels_ptr, others_ptr, side_ptr, window_bits, N, M, stride,
        other_stride, num_own, IS_SQUARE, HAS_WINDOW,
    )  # fmt: skip


@triton.jit
def count_rows(
    block, labels_ptr, others_ptr, side_ptr, window_bits, N, M, stride, other_stride, num_own,
    IS_SQUARE: tl.constexpr, HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """Fill the side at the sorted positions of a block of rows, for arguments as above."""
    BLOCK: tl.constexpr = _BLOCK
    STEP: tl.constexpr = _STEP
    window = window_bits.to(tl.int64).to(tl.float64, bitcast=True)
    row = block * BLOCK + tl.arange(0, BLOCK)
    key = _key(labels_ptr, row * stride, row < N, HAS_WINDOW)[:, None]
    position, first, last = (tl.zeros((BLOCK, STEP), tl.int32),) * 3  # added up at the end
    for begin in range(0, M, STEP):
        j = begin + tl.arange(0, STEP)
        other = _key(others_ptr, j * other_stride, j < M, HAS_WINDOW)[None, :]
        is_other = (j < M)[None, :]
        first += (is_other & _is_before(other, key, window, HAS_WINDOW)).to(tl.int32)
        last += (is_other & _is_before_end(other, key, window, HAS_WINDOW)).to(tl.int32)
        if IS_SQUARE:
            before = _comes_first(other, j[None, :], key, row[:, None], HAS_WINDOW)
            position += (is_other & before).to(tl.int32)
    if not IS_SQUARE:
        for begin in range(0, N, STEP):
            j = begin + tl.arange(0, STEP)
            other = _key(labels_ptr, j * stride, j < N, HAS_WINDOW)[None, :]
            before = _comes_first(other, j[None, :], key, row[:, None], HAS_WINDOW)
            position += ((j < N)[None, :] & before).to(tl.int32)
    position, first, last = tl.sum(position, 1), tl.sum(first, 1), tl.sum(last, 1)
    tl.store(side_ptr + position, row, mask=row < N)
    known = tl.max((key >= 0).to(tl.int32), 1) > 0
    _store_interval(side_ptr, position, row < N, known, first, last, N, row < num_own)


@triton.jit
def _store_interval(side_ptr, position, is_row, known, first, last, N, is_own):
    has_positives = known & (last - first > is_own.to(tl.int32))
    tl.store(side_ptr + N + position, tl.where(has_positives, first, 0), mask=is_row)
    tl.store(side_ptr + 2 * N + position, tl.where(has_positives, last, 0), mask=is_row)


@bound
@triton.jit(do_not_specialize=["window_bits"])
def _interval_kernel(
    keys_ptr,  # (N,) sorted
    order_ptr,  # (N,) int64
    others_ptr,  # (M,) sorted
    side_ptr,  # (3, N), out
    window_bits,
    N,
    M,
    num_steps,  # that halve M to 0
    num_own,
    HAS_WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    window = window_bits.to(tl.int64).to(tl.float64, bitcast=True)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = row < N
    key = tl.load(keys_ptr + row, mask=is_row, other=-1)
    i = tl.load(order_ptr + row, mask=is_row, other=0)
    tl.store(side_ptr + row, i, mask=is_row)
    first = _bisect(others_ptr, key, window, M, num_steps, HAS_WINDOW, IS_LAST=False)
    last = _bisect(others_ptr, key, window, M, num_steps, HAS_WINDOW, IS_LAST=True)
    _store_interval(side_ptr, row, is_row, key >= 0, first, last, N, i < num_own)


@triton.jit
def _bisect(others_ptr, key, window, M, num_steps, HAS_WINDOW: tl.constexpr, IS_LAST: tl.constexpr):
    """Return how many others lie before the interval of each key, or before its end."""
    begin = tl.zeros(key.shape, tl.int32)
    end = begin + M
    for _ in range(num_steps):
        is_open = begin < end
        middle = begin + (end - begin) // 2
        other = tl.load(others_ptr + middle, mask=is_open, other=0)
        if IS_LAST:
            is_before = _is_before_end(other, key, window, HAS_WINDOW)
        else:
            is_before = _is_before(other, key, window, HAS_WINDOW)
        begin = tl.where(is_open & is_before, middle + 1, begin)
        end = tl.where(is_open & ~is_before, middle, end)
    return begin
