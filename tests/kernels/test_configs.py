"""Which configuration a kernel is launched with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from spcl_fast.kernels import _config_tables as tables
from spcl_fast.kernels import _configs
from spcl_fast.kernels._configs import Config, pick

SMALL, LARGE, HOPPER = Config(64, 32, 4, 3), Config(32, 32, 4, 2), Config(128, 64, 8, 3)
CUDA = torch.device("cuda")
TABLE = {
    (1, 64, 80): SMALL,
    (1, 256, 80): LARGE,
    (1, 64, 90): HOPPER,
    (2, 64, 90): HOPPER,
    (3, 64, 90): LARGE,
}


def rows(num_planes: int, padded_dim: int) -> Any:
    """Return what is asked about planes."""
    return SimpleNamespace(num_planes=num_planes, padded_dim=padded_dim)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Look up tables as if kernels were compiled, for an A100."""
    monkeypatch.setattr(_configs, "IS_INTERPRETED", False)
    monkeypatch.setattr(_configs, "architecture", lambda _device: 80)
    return monkeypatch


# Older than any entry, each entry, newer than any (86 and 89 have the small memory of 80's tables).
@pytest.mark.parametrize(
    ("arch", "expected"),
    [(75, SMALL), (80, SMALL), (89, SMALL), (90, HOPPER), (100, HOPPER), (120, HOPPER)],
)
def test_architecture(arch: int, expected: Config, compiled: pytest.MonkeyPatch) -> None:
    compiled.setattr(_configs, "architecture", lambda _device: arch)
    assert pick("k", TABLE, rows(1, 64), CUDA) == expected


@pytest.mark.usefixtures("compiled")
def test_features_and_planes() -> None:
    assert pick("k", TABLE, rows(1, 64), CUDA) == SMALL
    assert pick("k", TABLE, rows(1, 128), CUDA) == LARGE
    assert pick("k", TABLE, rows(2, 64), CUDA) == HOPPER
    assert pick("k", TABLE, rows(3, 64), CUDA) == LARGE
    with pytest.raises(ValueError, match="must be in the table of k, got 1 planes of 320"):
        pick("k", TABLE, rows(1, 320), CUDA)
    with pytest.raises(ValueError, match="must be in the table of k, got 4 planes of 64"):
        pick("k", TABLE, rows(4, 64), CUDA)


def test_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_configs, "IS_INTERPRETED", True)
    assert pick("k", {}, rows(1, 64), torch.device("cpu")) == Config(64, 32, 1, 1)


# Rows of any length, those that a program holds whole, and those that it does not.
WHOLE = [(1, 64), (1, 128), (1, 256), (2, 64), (2, 128), (2, 256), (3, 64), (3, 128)]
WIDE = [(1, 320), (2, 4096), (3, 256), (3, 2**20)]
KERNELS = {
    "PAIR_SUMS": WHOLE + WIDE,
    "ROW_GRADIENT": WHOLE,
    "H_PANEL": WIDE,
    "PANEL_PRODUCT": WIDE,
    "POSITIVE_FORWARD": WHOLE + WIDE,
    "POSITIVE_BACKWARD": WHOLE + WIDE,
    "HISTOGRAM": WHOLE + WIDE,
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_every_row_has_a_configuration(name: str, arch: int, compiled: pytest.MonkeyPatch) -> None:
    compiled.setattr(_configs, "architecture", lambda _device: arch)
    for planes, dim in KERNELS[name]:
        config = pick(name, getattr(tables, name), rows(planes, dim), CUDA)
        assert config.block_m % config.block_n == 0 or name != "PAIR_SUMS"
