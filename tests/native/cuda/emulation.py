"""Panels of pairs and the arguments of kernels, for an emulator of nvcc's code."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

TILE_ROWS, TILE_COLS, THREADS, WARP = 64, 128, 256, 32
TAU, GAMMA = 0.07, 12.0
MOST_LABELS = 8
MIN_EFFICIENCY = 0.9
MOST_WAYS = 2  # of a bank conflict
Array = np.ndarray[Any, Any]


class Problem:
    """A panel of a matrix: rows from `row0`, columns from `col0`, and what its pairs add up to."""

    def __init__(self, num_rows: int, num_cols: int, row0: int, col0: int, size: int) -> None:
        self.num_rows, self.num_cols, self.row0, self.col0 = num_rows, num_cols, row0, col0
        self.is_square = size > 0
        rng = np.random.default_rng(num_rows)
        self.stride = -(-num_cols // 8) * 8
        self.rows = slice(row0, row0 + num_rows)
        self.cols = slice(col0, col0 + num_cols)
        total = max(size, row0 + num_rows, col0 + num_cols)
        self.total = -(-total // 4) * 4
        self.products = np.full((num_rows, self.stride), np.nan, np.float32)
        self.products[:, :num_cols] = rng.uniform(-1, 1, (num_rows, num_cols))
        self.sims = self.products[:, :num_cols].astype(np.float64) / TAU
        i, j = np.arange(num_rows)[:, None] + row0, np.arange(num_cols) + col0
        self.is_pair = (i != j) if self.is_square else np.ones((num_rows, num_cols), bool)
        self.first_col = 0
        self.lse = rng.uniform(14, 20, self.total).astype(np.float32)
        self.a = rng.uniform(-1, 1, self.total).astype(np.float32)
        self.c = rng.uniform(-1, 1, self.total).astype(np.float32)
        # Four classes: a quarter of the pairs is positive.
        self.ranks = rng.permutation(self.total).astype(np.int32)
        start = self.ranks * 4 // self.total * self.total // 4
        self.ranges = np.stack([start, start + self.total // 4], 1).astype(np.int32)
        low, high = self.ranges[self.rows, :1], self.ranges[self.rows, 1:]
        ranks = self.ranks[self.cols]
        self.positive = self.is_pair & (low <= ranks) & (ranks < high)
        self.grid = (-(-num_cols // TILE_COLS), -(-num_rows // TILE_ROWS))

    def sides(self) -> list[bytes]:
        """Return where merge_sums adds rows and columns: the panel is the whole matrix."""
        tiles_of_cols, tiles_of_rows = self.grid
        rows = (0, self.num_rows, tiles_of_cols, self.num_rows, 0, 1, 1)
        cols = (0, self.num_cols, tiles_of_rows, self.num_cols, 0, 1, 1)
        return [struct.pack("7q", *side) for side in (rows, cols)]

    @property
    def panel(self) -> bytes:
        numbers = (self.row0, self.col0, self.num_rows, self.num_cols, self.stride)
        return struct.pack("7q", *numbers, self.first_col, self.is_square)

    def weights(self, lse: Array) -> Array:
        return np.clip(1 - (lse - self.sims) / GAMMA, 0, 1)


# Whole tiles; ragged ones with a diagonal that crosses tiles; a rectangle; a single pair's worth.
PROBLEMS = {
    "whole tiles": (128, 256, 0, 0, 0),
    "with a diagonal": (101, 203, 64, 32, 264),
    "ragged": (67, 131, 0, 128, 0),
    "one row": (1, 5, 0, 0, 0),
}


def scalar(value: float) -> bytes:
    """Return a Scalar that lies on the host."""
    high = np.float32(value)
    return struct.pack("Qiff4x", 0, 0, high, np.float32(value - float(high)))


class Struct:
    """A structure as an argument: numbers, bytes, None for a null pointer, and arrays to point to.

    The arrays lie far enough apart in one block of memory; `TensorMap` is the emulator's.
    """

    GAP = 1024

    def __init__(self, *fields: Any) -> None:
        self.fields = fields
        arrays = {id(x): x for x in fields if isinstance(x, np.ndarray)}
        places = np.cumsum(
            [self.GAP, *(-(-x.nbytes // 256) * 256 + self.GAP for x in arrays.values())]
        )
        self.places = dict(zip(arrays, places, strict=False))
        self.arrays = arrays

    def argument(self, emulator: Any) -> Any:
        """Return the structure, with its arrays, as the emulator takes it."""
        size = max(self.places.values(), default=0)
        size += max((x.nbytes for x in self.arrays.values()), default=0) + self.GAP
        block = np.full(size, 0xFF, np.uint8)  # NaN where nobody may read
        for key, place in self.places.items():
            array = self.arrays[key]
            block[place : place + array.nbytes] = array.reshape(-1).view(np.uint8)
        self.block = block
        outer = self

        class Map(emulator.TensorMap):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                self.array, self.offset = block, 0

            def encode(self, address: int) -> bytes:
                return b"".join(outer.encoded(x, address) for x in outer.fields)

        return Map()

    def encoded(self, field: Any, address: int) -> bytes:
        if isinstance(field, bytes):
            return field
        if isinstance(field, np.ndarray):
            return struct.pack("Q", int(address) + int(self.places[id(field)]))
        return struct.pack("q", 0 if field is None else field)

    def copy_back(self) -> None:
        """Bring the arrays to what the kernel left, which must not have left them."""
        left = self.block.copy()
        for key, place in self.places.items():
            array = self.arrays[key]
            part = self.block[place : place + array.nbytes]
            array.reshape(-1).view(np.uint8)[:] = part
            left[place : place + array.nbytes] = 0xFF
        assert (left == 0xFF).all()


def values(x: Array | None) -> tuple[Any, ...]:
    """Return the fields of Values."""
    return x, 1


def labels_of(problem: Problem, num_labels: int, is_hard: bool, has_factors: bool) -> Struct:
    """Return Labels, all alike."""
    ranges, ranks = (
        np.concatenate([x] * max(1, num_labels)) for x in (problem.ranges, problem.ranks)
    )
    paces = [scalar(GAMMA) if k < num_labels else scalar(0) for k in range(MOST_LABELS)]
    factors = [
        values(problem.c if has_factors and k < num_labels else None) for k in range(MOST_LABELS)
    ]
    strides = (problem.total, problem.total)
    return Struct(
        num_labels, int(is_hard), ranges, ranks, *strides, *paces, *(x for c in factors for x in c)
    )


class Run:
    """Launches of one kernel."""

    def __init__(self, emulator: Any, ptx: str) -> None:
        self._emulator, self._emu = emulator, emulator.Emu(ptx)

    def __call__(self, name: str, grid: Any, *arguments: Any, threads: int = THREADS) -> None:
        (found,) = [x for x in self._emu.mod.kernels if f"cuda{len(name.split('I')[0])}{name}" in x]
        structs = [x for x in arguments if isinstance(x, Struct)]
        given = [x.argument(self._emulator) if isinstance(x, Struct) else x for x in arguments]
        self._emu.launch(found, grid, (threads,), given)
        for x in structs:
            x.copy_back()

    def check_memory(self) -> None:
        """Hold the launches to their share of every sector, and to few conflicts."""
        facts = self._emulator.report(self._emu)
        assert facts["ld_sector_eff"] >= MIN_EFFICIENCY, facts
        assert facts["st_sector_eff"] is None or facts["st_sector_eff"] >= MIN_EFFICIENCY, facts
        for kind in ("sld", "sst"):
            passes, conflicts = (
                facts.get(f"{kind}_wavefronts", 0),
                facts.get(f"{kind}_conflicts", 0),
            )
            assert passes <= MOST_WAYS * (passes - conflicts), facts
