"""The wheel and the sdist hold what they must and nothing else, and the wheel works alone."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
KERNELS = {f"spcl_fast/kernels/{path.name}" for path in (REPOSITORY / "kernels").glob("*.py")}
CSRC = {
    str(path.relative_to(REPOSITORY))
    for path in (REPOSITORY / "csrc").rglob("*")
    if path.suffix in (".cpp", ".h", ".cu", ".cuh")
}

pytestmark = pytest.mark.packaging


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=900)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def test_wheel_holds_the_package(archives):
    names = zipfile.ZipFile(archives[0]).namelist()
    for name in (
        "spcl_fast/py.typed",
        "spcl_fast/segmentation/presets/demo.yaml",
        "spcl_fast/segmentation/report/template.html",
        "spcl_fast/ops/pair_lse.py",
        *KERNELS,
    ):
        assert name in names
    assert "spcl_fast/kernels/pair_lse.py" in KERNELS
    assert any(name.endswith("licenses/LICENSE") for name in names)
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"spcl_fast"}


# Every Python from 3.10 on takes it; tests/native/test_stable_abi.py is about PyTorch.
def test_one_wheel_for_every_python(archives):
    assert "-cp310-abi3-" in archives[0].name
    names = zipfile.ZipFile(archives[0]).namelist()
    assert [name for name in names if name.endswith(".so")] == ["spcl_fast/_C.abi3.so"]
    assert "spcl_fast/not_built.txt" not in names


def test_sdist_can_be_built_from(archives):
    with tarfile.open(archives[1]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
        links = [member.name for member in archive.getmembers() if member.issym()]
    files = {"pyproject.toml", "LICENSE", "README.md", "spcl_fast/segmentation/presets/demo.yaml"}
    assert files | KERNELS | CSRC <= names
    assert any(name.endswith(".cu") for name in CSRC)
    assert links == []


def test_wheel_runs_without_the_repository(archives, tmp_path):
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*install, str(tmp_path), str(archives[0])], check=True, timeout=300)
    program = (
        "import torch, spcl_fast, sys; from spcl_fast import SupConLoss;"
        f"assert spcl_fast.__file__.startswith({str(tmp_path)!r});"
        "z = torch.eye(4, requires_grad=True);"
        "SupConLoss()(z, torch.tensor([0, 0, 1, 1])).loss.backward();"
        "assert z.grad.abs().sum() > 0;"
        "import spcl_fast.kernels"
    )
    environment = dict(os.environ, PYTHONPATH=str(tmp_path))
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
