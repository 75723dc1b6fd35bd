"""Over ranks, the mean loss and the gradients averaged as DDP does equal those of the originals."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

import spcl_fast

if not dist.is_available() or not dist.is_gloo_available() or sys.platform == "win32":
    pytest.skip("needs gloo", allow_module_level=True)


# An odd and an even number of ranks share the pairs in different ways.
@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_equals_the_originals(world: int, tmp_path: Path) -> None:
    for package in ("open_clip", "lightly"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    environment = os.environ | {"PYTHONPATH": str(Path(spcl_fast.__file__).parents[1])}
    program = Path(__file__).with_name("rank_program.py")
    command = [sys.executable, program, str(world), tmp_path]
    subprocess.run(command, env=environment, check=True, timeout=120)
    for rank in range(world):
        differences = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(differences) == 6
        assert differences.pop("bank") < 1e-6  # float32, normalised twice
        assert max(differences.values()) < 1e-10, differences
