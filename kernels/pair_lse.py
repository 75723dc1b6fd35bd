"""Row-wise log-sum-exp of pairwise similarities, without storing the (N, N) matrix.

    sim_ij = z_i . z_j / tau,  j != i
    lse_i  = log sum_j exp(sim_ij)

    p_ij   = exp(sim_ij - lse_i)
    h_ij   = dlse_i p_ij + dlse_j p_ji
    dz_i   = sum_j h_ij z_j / tau

Forward visits every unordered pair once: a tile of exp(sim) gives sums for the rows that its
program owns and parts for the rows that it visits, which a second kernel adds in fixed order.
Where the norms bound |sim| by 64 nothing is shifted, and h_ij = exp(sim_ij) (u_i + u_j) with
u = dlse exp(-lse); else sums are shifted by their maxima (arXiv:1805.02867). The device decides:
both kernels are launched, and one returns at once.

Backward recomputes sim. By rows: a program keeps dz_i and visits all j. By pairs: a tile of h
serves dz_i and, by atomic additions, dz_j; `_adds_atomically` says when that costs less.
With references r in the place of z_j nothing is left out, and the visited rows are theirs.

Memory: O(N D). Multiply-adds: N^2 D / 2 forward; backward 2 N^2 D by rows, 3 N^2 D / 2 by pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from spcl_fast.kernels._configs import Config, dtype_name, pick
from spcl_fast.kernels._pair_lse_terms import (
    both_gradients_kernel,
    row_gradient_kernel,
    row_weights_kernel,
)
from spcl_fast.kernels._config_tables import (
    BY_PAIRS,
    BY_PAIRS_UNALIGNED,
    BY_ROWS,
    BY_ROWS_UNALIGNED,
    FORWARD,
    WIDE,
)
from spcl_fast.kernels._pair_lse_forward import merge_parts_kernel, pair_sums_kernel
from spcl_fast.kernels._tiles import (
    device_of,
    dot_precision,
    is_aligned,
    launch_options,
    padded_features,
    row_alignment,
)

# The backward holds whole rows; see kernels/_pair_lse_wide.py for more features. The halves of whole rows of
# 256 would fill the registers of three products.
_MAX_BLOCK_D = {"tf32": 256, "ieee": 256, "tf32x3": 128}
# Features per step of a forward with more.
_WIDE_BLOCK_D = 64
# A sum of fewer terms is as exact as float32 allows only if the largest is shifted to 1.
_MIN_TERMS = 16
# Parts may take this much beyond the size of z in float32, so that small problems fill a GPU.
_PART_BYTES = 1 << 24
# Programs to aim at: some for each of about a hundred multiprocessors, to even out the last ones.
_NUM_PROGRAMS = 1024
_MERGE_ROWS = 128


@dataclass(frozen=True)
class _Pairs:
    """Rows z against rows refs, with what decides about the shift."""

    z: Tensor  # (N, D)
    refs: Tensor  # (M, D), z itself where is_square
    is_square: bool
    norm: Tensor  # () float32, largest norm of a row of z; inf asks for shifted sums
    refs_norm: Tensor
    tau: float | Tensor

    @classmethod
    def of(cls, z: Tensor, refs: Tensor | None, tau: float | Tensor) -> _Pairs:
        others = z if refs is None else refs
        if min(z.shape[0], others.shape[0]) < _MIN_TERMS:
            norm = refs_norm = torch.full((), math.inf, device=z.device)
        else:
            norm = refs_norm = _largest_norm(z)
            if refs is not None:
                refs_norm = _largest_norm(refs)
        return cls(z, others, refs is None, norm, refs_norm, tau)

    def swapped(self) -> _Pairs:
        """Return the same pairs with the references as the rows that are owned."""
        return _Pairs(self.refs, self.z, self.is_square, self.refs_norm, self.norm, self.tau)

    def sizes(self) -> tuple[int, int, int]:
        """Return N, M, D."""
        return self.z.shape[0], self.refs.shape[0], self.z.shape[1]

    def part_bytes(self) -> int:
        """Return how much memory parts may take: O((N + M) D)."""
        return max(4 * (self.z.numel() + self.refs.numel()) // 2, _PART_BYTES)


def pair_lse_fwd(
    z: Tensor,  # (N, D) float32, bfloat16 or float16, any strides
    refs: Tensor | None,  # (M, D)
    tau: float | Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Return lse (N,), and lse of the references (M,) where there are any, float32."""
    lse = z.new_full((z.shape[0],), -math.inf, dtype=torch.float32)
    lse_refs = lse
    if refs is not None:
        lse_refs = lse.new_full((refs.shape[0],), -math.inf)
    if lse.numel() and lse_refs.numel():
        with device_of(z):
            _sum_panels(_Pairs.of(z, refs, tau), lse, lse_refs)
    return lse, None if refs is None else lse_refs


def pair_lse_bwd(
    z: Tensor,  # (N, D)
    refs: Tensor | None,  # (M, D)
    lse: Tensor,  # (N,) float32
    lse_refs: Tensor | None,  # (M,) float32
    dlse: Tensor,  # (N,) float32
    dlse_refs: Tensor | None,  # (M,) float32
    tau: float | Tensor,
    *,
    needs_z: bool,
    needs_refs: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return dz (N, D) and drefs (M, D), contiguous, as `z`, None where not needed."""
    needs_refs = needs_refs and refs is not None
    if z.shape[1] > _MAX_BLOCK_D[dot_precision(z.dtype)]:
        from spcl_fast.kernels._pair_lse_wide import pair_lse_bwd_wide

        return pair_lse_bwd_wide(
            z, refs, lse, lse_refs, dlse, dlse_refs, tau, needs_z=needs_z, needs_refs=needs_refs
        )
    if z.numel() == 0 or (refs is not None and refs.numel() == 0):
        drefs = None if refs is None else torch.zeros_like(refs)
        return (torch.zeros_like(z) if needs_z else None), drefs if needs_refs else None
    if not (needs_z or needs_refs):
        return None, None
    with device_of(z):
        pairs = _Pairs.of(z, refs, tau)
        rows, others = _terms(pairs, lse, dlse, lse_refs, dlse_refs)
        # Against references a visit serves both sides only where both are asked for.
        if (refs is None or (needs_z and needs_refs)) and _adds_atomically(z):
            return _gradients_by_pairs(pairs, rows, others)
        dz = _gradient_by_rows(pairs, rows, others) if needs_z else None
        drefs = _gradient_by_rows(pairs.swapped(), others, rows) if needs_refs else None
    return dz, drefs


def _largest_norm(z: Tensor) -> Tensor:
    """Return the largest norm of a row, () float32, NaN if a row has one."""
    norms: Tensor = torch.linalg.vector_norm(z, dim=1, dtype=torch.float32)
    return norms.amax()


def _sum_panels(pairs: _Pairs, lse: Tensor, lse_refs: Tensor) -> None:
    """Fill lse and lse_refs, by panels of rows whose parts fit in memory of O(N D)."""
    z, refs = pairs.z, pairs.refs
    N, M, D = pairs.sizes()
    block_d = padded_features(D)
    is_wide = block_d > _MAX_BLOCK_D[dot_precision(z.dtype)]
    config_d = WIDE if is_wide else block_d
    config = pick("pair_lse_fwd", FORWARD, z.dtype, config_d, z.device)
    num_blocks, num_tiles = triton.cdiv(N, config.block_m), triton.cdiv(M, config.block_n)
    panel = max(1, min(num_blocks, pairs.part_bytes() // (4 * M)))
    ratio = config.block_m // config.block_n
    visited = lse.new_empty(panel, M)
    for first_block in range(0, num_blocks, panel):
        blocks = min(panel, num_blocks - first_block)
        visits = blocks * num_tiles
        if pairs.is_square:
            visits -= ratio * sum(range(first_block, first_block + blocks))
        chunk = triton.cdiv(visits, _NUM_PROGRAMS)
        own = lse.new_empty(triton.cdiv(num_tiles, chunk), blocks * config.block_m)
        for is_bounded in (True, False):
            pair_sums_kernel[(blocks, own.shape[0])](
                z,
                refs,
                pairs.norm,
                pairs.refs_norm,
                own,
                visited,
                pairs.tau,
                first_block,
                chunk,
                N,
                M,
                D,
                own.stride(0),
                M,
                *z.stride(),
                *refs.stride(),
                BLOCK_D=_WIDE_BLOCK_D if is_wide else block_d,
                ALIGNMENT=row_alignment(z, refs),
                IS_SQUARE=pairs.is_square,
                IS_WIDE=is_wide,
                IS_BOUNDED=is_bounded,
                PRECISION=dot_precision(z.dtype),
                **launch_options(config),
            )
        first_row = first_block * config.block_m
        last_row = min(N, first_row + own.shape[1])
        is_first, is_last = first_block == 0, first_block + blocks == num_blocks
        if pairs.is_square:
            _merge(pairs, visited[:blocks], lse, (first_row, N), 0, config, is_first, False)
            _merge(pairs, own, lse, (first_row, last_row), first_row, config, False, True)
        else:
            _merge(pairs, visited[:blocks], lse_refs, (0, M), 0, config, is_first, is_last)
            _merge(pairs, own, lse, (first_row, last_row), first_row, config, True, True)


def _merge(
    pairs: _Pairs,
    parts: Tensor,  # (num_parts, stride) float32
    lse: Tensor,
    rows: tuple[int, int],  # of lse
    first_part_row: int,  # row of lse in column 0 of the parts
    config: Config,
    is_first: bool,
    is_last: bool,
) -> None:
    """Add parts to a range of lse; what a row has of its own diagonal is among its own parts."""
    merge_parts_kernel[(triton.cdiv(rows[1] - rows[0], _MERGE_ROWS),)](
        parts,
        lse,
        pairs.norm,
        pairs.refs_norm,
        pairs.tau,
        parts.shape[0],
        *rows,
        first_part_row,
        rows[0] // config.block_m,
        parts.stride(0),
        BLOCK=_MERGE_ROWS,
        BLOCK_M=config.block_m,
        BLOCK_K=16,
        IS_TRIANGULAR=pairs.is_square and not is_last,
        IS_FIRST=is_first,
        IS_LAST=is_last,
    )


@dataclass(frozen=True)
class _Terms:
    """What the backward needs of one side besides its features, float32."""

    lse: Tensor  # (N,)
    weight: Tensor  # (N,)
    largest: Tensor  # () largest |dlse|


def _terms(
    pairs: _Pairs,
    lse: Tensor,
    dlse: Tensor,
    lse_refs: Tensor | None,
    dlse_refs: Tensor | None,
) -> tuple[_Terms, _Terms]:
    """Return the terms of the rows and of the references, the same where those are the rows."""
    largest = refs_largest = torch.linalg.vector_norm(dlse, math.inf)
    if dlse_refs is not None:
        refs_largest = torch.linalg.vector_norm(dlse_refs, math.inf)

    def weights(lse: Tensor, dlse: Tensor) -> Tensor:
        weight = torch.empty_like(lse)
        row_weights_kernel[(triton.cdiv(lse.numel(), _MERGE_ROWS),)](
            lse,
            dlse.contiguous(),
            pairs.norm,
            pairs.refs_norm,
            largest,
            refs_largest,
            weight,
            pairs.tau,
            lse.numel(),
            BLOCK=_MERGE_ROWS,
        )
        return weight

    lse = lse.contiguous()
    rows = _Terms(lse, weights(lse, dlse), largest)
    if lse_refs is None or dlse_refs is None:
        return rows, rows
    lse_refs = lse_refs.contiguous()
    return rows, _Terms(lse_refs, weights(lse_refs, dlse_refs), refs_largest)


def _gradient_by_rows(pairs: _Pairs, rows: _Terms, others: _Terms) -> Tensor:
    """Return dz (N, D); few rows share out their columns, and their parts are added after."""
    z, refs = pairs.z, pairs.refs
    N, M, D = pairs.sizes()
    block_d = padded_features(D)
    table = BY_ROWS if is_aligned(z, refs) else BY_ROWS_UNALIGNED
    config = pick("pair_lse_bwd", table, z.dtype, block_d, z.device)
    num_blocks, num_tiles = triton.cdiv(N, config.block_m), triton.cdiv(M, config.block_n)
    splits = min(_NUM_PROGRAMS // 4 // num_blocks, pairs.part_bytes() // (4 * N * D), num_tiles)
    chunk = triton.cdiv(num_tiles, max(1, splits)) * config.block_n
    splits = triton.cdiv(M, chunk)
    dtype = torch.float32 if splits > 1 else z.dtype
    dz = torch.empty(splits, N, D, dtype=dtype, device=z.device)
    for is_bounded in (True, False):
        row_gradient_kernel[(num_blocks, splits)](
            z,
            refs,
            rows.lse,
            rows.weight,
            others.lse,
            others.weight,
            pairs.norm,
            pairs.refs_norm,
            rows.largest,
            others.largest,
            dz,
            pairs.tau,
            chunk,
            N,
            M,
            D,
            *z.stride(),
            *refs.stride(),
            BLOCK_D=block_d,
            ALIGNMENT=row_alignment(z, refs),
            IS_SQUARE=pairs.is_square,
            IS_BOUNDED=is_bounded,
            PRECISION=dot_precision(z.dtype),
            **launch_options(config),
        )
    return dz[0] if splits == 1 else dz.sum(0).to(z.dtype)


def _gradients_by_pairs(
    pairs: _Pairs, rows: _Terms, others: _Terms
) -> tuple[Tensor, Tensor | None]:
    """Return dz (N, D), and drefs (M, D) where the references are not z, by atomic additions."""
    z, refs = pairs.z, pairs.refs
    N, M, D = pairs.sizes()
    block_d = padded_features(D)
    table = BY_PAIRS if is_aligned(z, refs) else BY_PAIRS_UNALIGNED
    config = pick("pair_lse_bwd_pairs", table, z.dtype, block_d, z.device)
    num_blocks, num_tiles = triton.cdiv(N, config.block_m), triton.cdiv(M, config.block_n)
    visits = num_blocks * num_tiles // (2 if pairs.is_square else 1)
    chunk = max(1, triton.cdiv(visits, _NUM_PROGRAMS))
    dz = torch.zeros(N, D, device=z.device)
    drefs = dz if pairs.is_square else torch.zeros(M, D, device=z.device)
    for is_bounded in (True, False):
        both_gradients_kernel[(num_blocks, triton.cdiv(num_tiles, chunk))](
            z,
            refs,
            rows.lse,
            rows.weight,
            others.lse,
            others.weight,
            pairs.norm,
            pairs.refs_norm,
            rows.largest,
            others.largest,
            dz,
            drefs,
            pairs.tau,
            chunk,
            N,
            M,
            D,
            *z.stride(),
            *refs.stride(),
            BLOCK_D=block_d,
            ALIGNMENT=row_alignment(z, refs),
            IS_SQUARE=pairs.is_square,
            IS_BOUNDED=is_bounded,
            PRECISION=dot_precision(z.dtype),
            **launch_options(config),
        )
    return dz.to(z.dtype), None if pairs.is_square else drefs.to(z.dtype)


# Multiply-adds per second in units of 1e12, and additions to float32 memory in the same unit: what
# the data sheet of an H100 allows, and a guess; to be calibrated on a GPU.
_MULTIPLY_ADDS = {"bf16": 495, "fp16": 495, "fp32 tf32": 247, "fp32 tf32x3": 82, "fp32 ieee": 30}
_ATOMIC_ADDS = 1.3


def _adds_atomically(z: Tensor) -> bool:
    """Return whether the backward by pairs is allowed and expected to take less time.

    Per ordered pair and feature it saves half a multiply-add and costs 1 / (2 BLOCK_M) additions
    to memory.
    """
    name, block_d = dtype_name(z.dtype), padded_features(z.shape[1])
    if torch.are_deterministic_algorithms_enabled():
        return False
    if not any(known == name and size >= block_d for known, size, _ in BY_PAIRS):
        return False
    config = pick("pair_lse_bwd_pairs", BY_PAIRS, z.dtype, block_d, z.device)
    return 0.5 / _MULTIPLY_ADDS[name] > 1 / (2 * config.block_m * _ATOMIC_ADDS)
