"""Every example runs, learns and is short; what docs/swap-in.md says is so."""

from __future__ import annotations

import math
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy, normalize

import spcl_fast
from spcl_fast.compat import lightly, supcontrast

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]


def run(name: str, *arguments: str, launcher: tuple[str, ...] = ()) -> str:
    paths = [str(Path(spcl_fast.__file__).parents[1]), str(EXAMPLES)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(output: str) -> None:
    losses = [float(x) for x in re.findall(r"^step \d+: loss ([\d.]+)", output, re.M)]
    assert losses[-1] < max(losses) - 0.2  # the largest: a memory fills first
    accuracy = {
        when: float(value)
        for when, value in re.findall(r"^(before|after): accuracy (\S+),", output, re.M)
    }
    (chance,) = set(re.findall(r"chance (\S+)$", output, re.M))
    assert accuracy["after"] > max(2 * float(chance), 1.2 * accuracy.get("before", 0))


# the fewest steps at which every number is well away from its limit
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("clip.py", 40),
        ("lightning_module.py", 40),
        ("metric_learning.py", 41),
        ("own_data.py", 100),
        ("simclr.py", 40),
        ("supcontrast_classifier.py", 40),
    ],
)
def test_runs(
    name: str, steps: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # In this process: to import PyTorch anew takes longer than some of them.
    if name == "lightning_module.py":
        pytest.importorskip("lightning")
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", [name, "--steps", str(steps)])
    torch.use_deterministic_algorithms(False)
    with torch.random.fork_rng():
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    check(capsys.readouterr().out)


@pytest.mark.slow
def test_two_processes_run() -> None:
    if not dist.is_available() or not dist.is_gloo_available() or sys.platform == "win32":
        pytest.skip("needs gloo")
    output = run("ddp.py", "--steps", "30", launcher=(*TORCHRUN, "--standalone"))
    check(output)
    assert "anchors 512" in output  # 2 processes, 2 views of 128 images each


def test_each_is_short_and_tested() -> None:
    scripts = sorted(EXAMPLES.glob("*.py"))
    text = Path(__file__).read_text("utf-8")
    assert len(scripts) == 8
    for script in scripts:
        assert len(script.read_text("utf-8").splitlines()) < 80, script.name
        assert script.name == "toy.py" or f'"{script.name}"' in text


def test_imports_of_the_guide_exist() -> None:
    guide = (EXAMPLES.parent / "docs" / "swap-in.md").read_text("utf-8")
    lines = re.findall(r"`(from spcl_fast\S* import \w+)`", guide)
    assert len(lines) == 7
    for line in lines:
        exec(line, {})
    scripts = set(re.findall(r"`(\w+\.py)`", guide))
    assert scripts == {path.name for path in EXAMPLES.glob("*.py")} - {"toy.py", "own_data.py"}


def test_lines_of_the_guide_equal_plain_code() -> None:
    torch.manual_seed(0)
    a, b = normalize(torch.randn(2, 40, 16, dtype=torch.float64), dim=2)
    labels, own, tau = torch.randint(5, (40,)), torch.arange(40), 0.1
    sim = a @ b.T / tau
    one, other = cross_entropy(sim, own), cross_entropy(sim.T, own)
    close = torch.testing.assert_close
    close(spcl_fast.InfoNCELoss(tau, symmetric=False)(a, b).loss, one)
    close(spcl_fast.InfoNCELoss(tau)(a, b).loss, (one + other) / 2)

    z = torch.cat([a, b])
    square = (z @ z.T / tau).fill_diagonal_(-math.inf)
    close(spcl_fast.NTXentLoss(tau)(a, b).loss, cross_entropy(square, torch.arange(80).roll(40)))
    positive = (labels[:, None] == labels).repeat(2, 2).fill_diagonal_(False)
    rows = -square.log_softmax(1).masked_fill(~positive, 0).sum(1) / positive.sum(1)
    loss = spcl_fast.SupConLoss(tau)(z, labels.repeat(2)).loss
    close(loss, rows.mean())
    of_supcontrast = supcontrast.SupConLoss(tau)(torch.stack([a, b], 1), labels)
    close(of_supcontrast, loss * tau / 0.07)

    queue = normalize(torch.randn(50, 16, dtype=torch.float64), dim=1)
    moco = lightly.NTXentLoss(tau, memory_bank_size=(50, 16))
    moco.memory_bank.bank = queue
    logits = torch.cat([(a * b).sum(1, keepdim=True), a @ queue.T], 1) / tau
    close(moco(a, b), cross_entropy(logits, torch.zeros(40, dtype=torch.long)))


def test_troubles_of_the_guide() -> None:
    torch.manual_seed(0)
    z = normalize(torch.randn(64, 8), dim=1)
    labels = torch.randint(8, (64,))
    loss = spcl_fast.SupConLoss(0.1)
    same = torch.randn(1, 8).repeat(64, 1).requires_grad_()
    out = loss(normalize(same, dim=1), labels)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(math.log(63), rel=1e-5)
    assert out.collapse.item() == pytest.approx(1, rel=1e-5)
    assert same.grad is not None
    assert same.grad.norm() < 1e-5
    same_pairs = spcl_fast.InfoNCELoss(0.1)(z[:1].repeat(64, 1), z[:1].repeat(64, 1))
    assert same_pairs.loss.item() == pytest.approx(math.log(64), rel=1e-5)

    assert loss(z, torch.arange(64)).loss == 0
    assert loss(z, torch.where(labels == 0, -1, labels)).num_anchors == (labels != 0).sum()
    assert spcl_fast.SupConLoss(1e-3)(z, labels).loss.isfinite()
    broken = z.clone()
    broken[3, 0] = math.nan
    assert loss(broken, labels).loss.isnan()

    classes = torch.eye(8)[labels]  # the least loss there is: equal rows a class, apart from others
    counts = torch.bincount(labels, minlength=8)[labels]
    least = (counts - 1.0).log().mean().item()
    assert spcl_fast.SupConLoss(0.01)(classes, labels).loss.item() == pytest.approx(least, rel=1e-4)

    half = torch.float16
    assert normalize(torch.full((1, 1024), 3000.0, dtype=half), dim=1).abs().max() == 0
    assert normalize(torch.zeros(1, 8, dtype=half), dim=1).isnan().all()
    rows = normalize(torch.randn(4096, 128), dim=1).to(half).requires_grad_()
    out = loss(rows, torch.randint(64, (4096,)))
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    assert rows.grad is not None
    assert (rows.grad.abs() < torch.finfo(half).tiny).float().mean() > 0.5
