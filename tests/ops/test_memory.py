"""The chunked ops keep no N x N matrix: the peak of a fresh process says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="needs the repository")
def test_peak_is_far_below_one_matrix() -> None:
    # 8192 rows: one float32 matrix takes 256 MiB, the embeddings 1 MiB.
    command = [sys.executable, "-m", "benchmarks.bench_memory", "--measure", "--impl", "chunked"]
    sizes = ["--n", "8192", "--dim", "32", "--classes", "16", "--threads", "1"]
    sizes += ["--tile-cache-mib", "0"]
    done = subprocess.run(command + sizes, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    assert 0 <= json.loads(done.stdout)["peak_mib"] < 40
