"""Powers of two by multiply-adds, in code compiled for the GPU or for an emulator of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import plant
from torch import Tensor

from spcl_fast.kernels import _configs
from spcl_fast.kernels.hopper import _powers
from spcl_fast.kernels.hopper._gluon import gl, gluon

ROWS, COLS = gl.constexpr(64), gl.constexpr(128)
HALVES = 373  # of the values: integers, and what lies between two
# Relative: the largest error, and the mean of many, which sums keep.
MOST, BIAS = 2**-22.4, 2e-9


@pytest.fixture(autouse=True)
def _compiled() -> None:
    if _configs.IS_INTERPRETED:
        pytest.skip("the interpreter has no Gluon")


@gluon.jit
def powers_kernel(x_ptr, scale, out_ptr, EXP2: gl.constexpr, FMA_EXPS: gl.constexpr):
    """One tile of pair_sums, in its layout."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLS, 16])
    rows = gl.arange(0, ROWS, layout=gl.SliceLayout(1, layout))
    cols = gl.arange(0, COLS, layout=gl.SliceLayout(0, layout))
    place = rows[:, None] * COLS + cols[None, :]
    gl.store(out_ptr + place, EXP2(gl.load(x_ptr + place), scale, FMA_EXPS))


def errors(scale: float, exp2: Any, device: str) -> Tensor:
    """Return relative errors over all of the range."""
    x = torch.linspace(-93, 93, ROWS.value * COLS.value - HALVES, dtype=torch.float64)
    x = torch.cat([x, (torch.arange(HALVES) - HALVES // 2) / 2]) / scale
    x = x.float().to(device)
    out = torch.empty_like(x)
    powers_kernel[(1,)](x, scale, out, exp2, 16, num_warps=4)
    truth = torch.exp2(x.double() * torch.tensor(scale).double().to(device))
    return out.double() / truth - 1


# As they are, and products of rows at a temperature of 0.07 in units of log(2).
@pytest.mark.parametrize("scale", [1.0, math.log2(math.e) / 0.07])
def test_errors(scale: float, device: str) -> None:
    found = errors(scale, _powers.exp2, device)
    assert found.abs().max() <= MOST
    assert found[:-HALVES].mean().abs() <= BIAS


COEFFICIENTS = ["0.00131", "0.00966", "0.0555", "0.2402", "0.6931", "f, 1.0"]


@pytest.mark.parametrize("coefficient", COEFFICIENTS)
def test_wrong_coefficients_are_seen(coefficient: str, tmp_path: Path, device: str) -> None:
    wrong = plant("_powers", tmp_path, coefficient, coefficient[:-1] + "9")
    assert errors(1.0, wrong.exp2, device).abs().max() > MOST


def test_powers_of_two_are_exact(device: str) -> None:
    x = torch.arange(ROWS.value * COLS.value, device=device) % 251 - 125
    out = torch.empty(len(x), device=device)
    powers_kernel[(1,)](x.float(), 1.0, out, _powers.exp2, 16, num_warps=4)
    assert torch.equal(out.double(), torch.exp2(x.double()))


# Of 64 registers of a thread.
@pytest.mark.parametrize(("share", "by_units"), [(0, 64), (3, 52), (8, 32), (16, 0)])
def test_each_power_is_computed_once(share: int, by_units: int, device: str) -> None:
    x = torch.linspace(-93, 93, ROWS.value * COLS.value, device=device)
    out = torch.empty_like(x)
    compiled = powers_kernel[(1,)](x, 1.0, out, _powers.exp2, share, num_warps=4)
    assert compiled.asm["ptx"].count("ex2.approx") == by_units
    torch.testing.assert_close(out.double(), torch.exp2(x.double()), rtol=MOST, atol=0)
