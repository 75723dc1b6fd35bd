"""Which configuration a kernel is launched with, from a table or from what was timed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import triton
from triton.runtime.errors import OutOfResources

from spcl_fast.kernels import _configs, _tuning
from spcl_fast.kernels._config_tables import (
    PAIR_LSE_BY_PAIRS,
    PAIR_LSE_BY_PAIRS_UNALIGNED,
    PAIR_LSE_BY_ROWS,
    PAIR_LSE_BY_ROWS_UNALIGNED,
)
from spcl_fast.kernels._configs import Config, pick
from spcl_fast.kernels._features import is_aligned, row_alignment
from spcl_fast.kernels._tuning import tune, use_tuned_configs

SMALL, LARGE, HOPPER = Config(64, 32, 4, 3), Config(32, 32, 4, 2), Config(128, 64, 8, 3)
TABLE = {
    ("bf16", 64, 80): SMALL,
    ("bf16", 256, 80): LARGE,
    ("bf16", 64, 90): HOPPER,
    ("fp32 ieee", 64, 90): HOPPER,
    ("fp32 tf32", 64, 90): LARGE,
}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Look up tables as if kernels were compiled, for an A100."""
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr(_configs, "architecture", lambda _device: 80)
    return monkeypatch


# Older than any entry, each entry, newer than any (86 and 89 have the small memory of 80's tables).
@pytest.mark.parametrize(
    ("arch", "expected"),
    [(75, SMALL), (80, SMALL), (89, SMALL), (90, HOPPER), (100, HOPPER), (120, HOPPER)],
)
def test_architecture(arch: int, expected: Config, compiled: pytest.MonkeyPatch) -> None:
    compiled.setattr(_configs, "architecture", lambda _device: arch)
    assert pick("k", TABLE, torch.bfloat16, 64, torch.device("cuda")) == expected


@pytest.mark.usefixtures("compiled")
def test_size_and_precision() -> None:
    device = torch.device("cuda")
    assert pick("k", TABLE, torch.bfloat16, 16, device) == SMALL
    assert pick("k", TABLE, torch.bfloat16, 128, device) == LARGE
    assert pick("k", TABLE, torch.float32, 64, device) == HOPPER
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert pick("k", TABLE, torch.float32, 64, device) == LARGE
        torch.set_float32_matmul_precision("high")
        with pytest.raises(ValueError, match="must be in the table of k for fp32 tf32x3, got 64"):
            pick("k", TABLE, torch.float32, 64, device)
    finally:
        torch.set_float32_matmul_precision(before)
    with pytest.raises(ValueError, match="must be in the table of k for bf16, got 512"):
        pick("k", TABLE, torch.bfloat16, 512, device)


def test_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    assert pick("k", {}, torch.float32, 64, torch.device("cpu")) == Config(32, 32, 1, 1)


# Whole 16 bytes, 8 of them, and one feature at a time; rows of a wider matrix with an odd stride.
@pytest.mark.parametrize(
    ("width", "dim", "dtype", "alignment", "aligned"),
    [
        (128, 128, torch.float16, 16, True),
        (104, 104, torch.float16, 8, True),
        (100, 100, torch.float16, 4, False),
        (100, 100, torch.float32, 4, True),
        (101, 101, torch.float32, 1, False),
        (129, 128, torch.float32, 1, False),
    ],
)
def test_alignment(width: int, dim: int, dtype: torch.dtype, alignment: int, aligned: bool) -> None:
    z, other = torch.empty(3, width, dtype=dtype)[:, :dim], torch.empty(2, dim, dtype=dtype)
    assert row_alignment(z, other) == row_alignment(other, z) == alignment
    assert is_aligned(z, other) == aligned


def test_unaligned_rows_have_a_configuration_wherever_aligned_ones_have() -> None:
    assert PAIR_LSE_BY_ROWS_UNALIGNED.keys() >= PAIR_LSE_BY_ROWS.keys()
    assert PAIR_LSE_BY_PAIRS_UNALIGNED.keys() >= PAIR_LSE_BY_PAIRS.keys()


@pytest.fixture
def on_a_gpu(compiled: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Let configurations be timed, by a timer that the test supplies."""
    compiled.setattr(_tuning, "_gpu", lambda _device: "NVIDIA A100")
    yield compiled
    use_tuned_configs(enabled=False)


def run_tune(folder: Path, times: dict[Config, list[float]], candidates: list[Config]) -> Config:
    """Time `candidates` by a clock that reads the next of `times`; a negative one does not fit."""
    launched: list[Config] = []

    def run() -> None:
        launched.append(pick("k", TABLE, torch.bfloat16, 64, torch.device("cuda")))

    def timer(run: object) -> float:
        assert callable(run)
        run()
        values = times[launched[-1]]
        value = values[launched.count(launched[-1]) % len(values)]
        if value < 0:
            raise OutOfResources(300_000, 227_000, "shared memory")
        return value

    cuda = torch.device("cuda")
    return tune("k", candidates, run, torch.bfloat16, 64, cuda, timer=timer, folder=folder)


@pytest.mark.usefixtures("on_a_gpu")
def test_the_median_wins_and_is_used_when_asked_for(tmp_path: Path) -> None:
    # The least mean is LARGE's, the least single time HOPPER's, SMALL does not fit.
    times = {SMALL: [-1.0], LARGE: [2.0, 2.0, 9.0], HOPPER: [3.0, 3.0, 1.0]}
    best = run_tune(tmp_path, times, [SMALL, HOPPER, LARGE])
    assert best == LARGE
    args = ("k", TABLE, torch.bfloat16, 64, torch.device("cuda"))
    assert pick(*args) == SMALL
    use_tuned_configs(enabled=True, folder=tmp_path)
    assert pick(*args) == LARGE
    assert pick("other", *args[1:]) == SMALL
    use_tuned_configs(enabled=False)
    assert pick(*args) == SMALL


def test_other_gpus_and_versions_are_not_read(tmp_path: Path, on_a_gpu: pytest.MonkeyPatch) -> None:
    run_tune(tmp_path, {LARGE: [1.0]}, [LARGE])
    (path,) = tmp_path.iterdir()  # and nothing half-written beside it
    assert json.loads(path.read_text())["milliseconds"] == 1.0
    args = ("k", TABLE, torch.bfloat16, 64, torch.device("cuda"))
    on_a_gpu.setattr(_tuning, "_gpu", lambda _device: "NVIDIA H100")
    use_tuned_configs(enabled=True, folder=tmp_path)
    assert pick(*args) == SMALL
    on_a_gpu.setattr(_tuning, "_gpu", lambda _device: "NVIDIA A100")
    on_a_gpu.setattr(triton, "__version__", "0.0")
    use_tuned_configs(enabled=True, folder=tmp_path)
    assert pick(*args) == SMALL


@pytest.mark.usefixtures("on_a_gpu")
def test_nothing_fits(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="candidates must have one that fits"):
        run_tune(tmp_path, {SMALL: [-1.0]}, [SMALL])
    assert list(tmp_path.iterdir()) == []


def test_times_without_a_gpu_mean_nothing(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(RuntimeError, match="device must be a GPU"):
        tune("k", [SMALL], lambda: None, torch.bfloat16, 64, cpu, folder=tmp_path)
