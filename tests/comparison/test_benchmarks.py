"""The providers that are compared run and are right, and the comparison refuses what is not."""

import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import spcl_fast
from benchmarks import (
    bench_memory,
    bench_training,
    cost_tables,
    measure,
)
from benchmarks.__main__ import grid, main, parse
from benchmarks._provenance import write_result
from benchmarks.compare import Comparison, Limits
from benchmarks.device import CLEAR_REFS, Ceiling, Cpu
from benchmarks.gate import Gate, RefusedError, exact
from benchmarks.plot import write_plot
from benchmarks.problem import Problem
from benchmarks.providers import (
    ALL,
    PROVIDERS,
    Provider,
    UnavailableError,
    differentiate,
    ours,
)
from spcl_fast import native
from spcl_fast.cli import main as cli

CASES = [
    (kind, name)
    for kind in ALL
    for name, provider in PROVIDERS.items()
    # compiles for seconds
    if kind in provider.kinds and "cpu" in provider.devices and name != "torch.compile"
]


# 66 rows: ragged for tiles of any power of two; 37 features and 131 references likewise.
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_time_of_a_step(benchmark, kind, name):
    """`pytest tests/comparison --benchmark-enable` times them, otherwise they run once."""
    problem = Problem(kind, 66, dim=37, classes=5, refs=131)
    try:
        step, _ = Gate(problem).admit(PROVIDERS[name])
    except UnavailableError as error:
        pytest.skip(str(error))
    benchmark(step, problem.embeddings())


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("rows", [1, 7, 66])  # rows of a block: one, a remainder, all
def test_yardstick_is_the_reference(kind, rows):
    problem = Problem(kind, 66, dim=9, classes=5, refs=131)
    z = 2 * problem.embeddings().double()
    losses, grad = exact(problem, z, torch.float64, block_size=rows * 66)
    there = PROVIDERS["dense"].build(problem) if kind == "siglip" else ours("reference", problem)
    loss_there, grad_there = there(z)
    torch.testing.assert_close(losses.mean(), loss_there, rtol=1e-12, atol=0)
    torch.testing.assert_close(grad, grad_there, rtol=1e-12, atol=1e-14)
    losses, grad = exact(problem, z, torch.float64, normalise=True)
    assert losses.mean() != loss_there
    torch.testing.assert_close((grad * z).sum(1), torch.zeros(len(z)).double(), rtol=0, atol=1e-12)


def half_gradient(problem):
    """A fault known from public kernels: the gradient lacks the part of the columns."""
    right, z_ref, labels = ours("reference", problem), problem.embeddings(), problem.labels()

    def loss(z):
        sim = z @ z_ref.T / problem.tau
        own = torch.eye(len(z), dtype=torch.bool)
        lse = sim.masked_fill(own, -math.inf).logsumexp(1, keepdim=True)
        positive = (labels[:, None] == labels) & ~own
        return (((lse - sim) * positive).sum(1) / positive.sum(1)).mean()

    step = differentiate(loss)
    return lambda z: (right(z)[0], step(z)[1])


def loss_off_by(relative):
    def build(problem):
        right = ours("reference", problem)
        return lambda z: (right(z)[0] * (1 + relative), right(z)[1])

    return build


def not_finite(problem):
    right = ours("reference", problem)
    return lambda z: (right(z)[0], right(z)[1] * math.nan)


FAULTS = {
    "half gradient": half_gradient,
    "loss off by 1e-5": loss_off_by(1e-5),
    "not finite": not_finite,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_gate_refuses_a_wrong_provider(fault):
    comparison = Comparison(
        Limits(), 1, {"dense": PROVIDERS["dense"], "bad": Provider(FAULTS[fault])}
    )
    names = [row["provider"] for row in comparison.run(Problem("supcon", 32, dim=8), 1)]
    assert names == ["dense"]
    (left_out,) = comparison.left_out
    assert left_out["provider"] == "bad"
    assert left_out["reason"].startswith("refused, ")


def wrong_beyond(rows):
    def build(problem):
        right = ours("reference", problem)
        return lambda z: (right(z)[0] + (len(z) > rows), right(z)[1])

    return build


def test_gate_looks_beyond_the_rows_it_checks():
    gate = Gate(Problem("supcon", 64, dim=8), most_rows=32)
    gate.admit(PROVIDERS["dense"])
    gate.admit(PROVIDERS["chunked"])
    with pytest.raises(RefusedError, match="64 rows"):
        gate.admit(Provider(wrong_beyond(32)))


def wrong_beyond_refs(num_refs):
    def build(problem):
        right = ours("reference", problem)
        return lambda z: (right(z)[0] + (problem.refs > num_refs), right(z)[1])

    return build


def test_gate_cuts_a_bank_to_as_many_pairs():
    gate = Gate(Problem("bank", 64, dim=8, classes=4, refs=256), most_rows=96)
    assert (gate.checked.n, gate.checked.refs) == (64, 144)
    gate.admit(PROVIDERS["dense"])
    with pytest.raises(RefusedError, match="64 rows"):
        gate.admit(Provider(wrong_beyond_refs(144)))


def no_gradient_of_refs(problem):
    right = ours("reference", problem)
    return lambda z: (right(z)[0], torch.cat([right(z)[1][: problem.n], 0 * z[problem.n :]]))


def test_gate_sees_both_sides_of_a_bank():
    gate = Gate(Problem("bank", 64, dim=8, classes=4, refs=96))
    with pytest.raises(RefusedError, match="grad"):
        gate.admit(Provider(no_gradient_of_refs))


def one_label_of_three(problem):
    return ours("reference", replace(problem, kind="self-paced"))


def test_gate_counts_the_meta_labels():
    with pytest.raises(RefusedError, match="loss"):
        Gate(Problem("meta-labels", 64, dim=8)).admit(Provider(one_label_of_three))


def test_beyond_the_memory_nothing_runs():
    def never(problem):
        raise AssertionError("must not be built")

    dense = replace(PROVIDERS["dense"], build=never)
    comparison = Comparison(
        Limits(memory_mib=1.0), 1, {"dense": dense, "chunked": PROVIDERS["chunked"]}
    )
    problem = Problem("self-paced", 256, dim=8)
    assert [row["provider"] for row in comparison.run(problem, 1)] == ["chunked"]
    (left_out,) = comparison.left_out
    assert left_out["reason"] == "would take about 2 MiB, more than --memory-mib 1"
    assert (left_out["n"], left_out["problem"]) == (256, "self-paced")


def test_beyond_the_time_nothing_runs():
    comparison = Comparison(Limits(step_s=1.0), 1, {"chunked": PROVIDERS["chunked"]})
    list(comparison.run(Problem("supcon", 64, dim=8), 1))
    comparison.rows[0]["time_ms"] = 500.0
    assert list(comparison.run(Problem("supcon", 128, dim=8), 1)) == []
    (left_out,) = comparison.left_out
    assert left_out["reason"] == "would take about 2 s a step, more than --step-s 1"


def test_what_is_missing_is_left_out_with_a_sentence(monkeypatch):
    for name in ("pytorch_metric_learning", "pytorch_metric_learning.losses"):
        monkeypatch.setitem(sys.modules, name, None)
    name = "pytorch-metric-learning"
    comparison = Comparison(Limits(), 1, {name: PROVIDERS[name]})
    assert list(comparison.run(Problem("supcon", 32, dim=8), 1)) == []
    reason = comparison.left_out[0]["reason"]
    assert reason.startswith("pytorch_metric_learning does not import here: ")


def test_native_is_left_out_where_it_is_not_built(monkeypatch):
    monkeypatch.setattr("spcl_fast.native.is_built", lambda: False)
    for name in ("native", "native, no cache"):
        with pytest.raises(UnavailableError, match="native"):
            PROVIDERS[name].build(Problem("supcon", 32))


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="needs Linux")
def test_memory_is_that_of_the_matrices():
    problem = Problem("supcon", 2048, dim=16)  # one matrix: 16 MiB
    assert measure.peak_mib("products", problem, 1) == pytest.approx(16, abs=4)
    assert measure.peak_mib("chunked", problem, 1) < 16


def test_rounds():
    calls = []
    steps = {name: lambda z, name=name: calls.append(name) for name in "ab"}
    times = measure.time_steps(measure.on(steps, torch.zeros(1)), 2, Cpu())
    rounds = ["".join(calls[i : i + 2]) for i in range(0, len(calls), 2)]
    assert set(rounds) == {"ab", "ba"}
    assert times["a"]["rounds"] == 100 == len(calls) / 2
    assert times["a"]["p20_ms"] <= times["a"]["time_ms"] <= times["a"]["p80_ms"]


def test_a_long_step_gets_two_runs(monkeypatch):
    monkeypatch.setattr(measure, "MOST_SECONDS", 0.0)
    calls = []
    measure.time_steps({"a": lambda: calls.append(1)}, 7, Cpu())
    assert len(calls) == 2


def test_rate_of_the_machine():
    ceilings = {"a": Ceiling("mm", 2e6, int), "b": Ceiling("mm", 2e3, int)}
    ceilings["c"] = Ceiling("copy", 3e6, int)
    times = {"a": {"time_ms": 1.0}, "b": {"time_ms": 0.1}, "c": {"time_ms": 1.0}}
    assert measure.best_rate("mm", ceilings, times) == pytest.approx(2.0)
    assert measure.best_rate("copy", ceilings, times) == pytest.approx(3.0)
    assert measure.best_rate("mm", {}, {}) is None


def test_flops_count_a_pair_once():
    assert Problem("supcon", 32, dim=8).num_flops == 4 * 32**2 * 8
    assert Problem("bank", 32, dim=8, refs=100).num_flops == 8 * 32 * 100 * 8
    assert Problem("clip", 32, dim=8).num_flops == 8 * 32 * 32 * 8


def test_star_varies_one_list_at_a_time():
    lists = ["--n", "64", "--dim", "8", "16", "--classes", "4", "2", "--threads", "1"]
    points = grid(parse([*lists, "--problem", "supcon", "--star"]))
    assert [point[3:5] for point in points] == [(8, 4), (8, 2), (16, 4)]
    assert len(grid(parse([*lists, "--problem", "supcon"]))) == 4


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    path = tmp_path_factory.mktemp("result") / "losses.json"
    sizes = ["--n", "32", "64", "--dim", "8", "--classes", "4", "--rounds", "1", "--threads", "1"]
    limits = ["--memory-mib", "0.05"]  # enough for seven 32 x 32 matrices, not for 64 x 64
    limits += ["--provider", "products", "dense", "chunked"]
    assert main(["--problem", "supcon", *sizes, *limits, "--json", str(path)]) == 0
    return path


def test_result_says_how_it_was_made(result):
    found = json.loads(result.read_text(encoding="utf-8"))
    assert found["command"].startswith("python -m benchmarks --problem supcon --n 32 64")
    assert found["spcl_fast"] == spcl_fast.__version__
    assert found["torch"] == torch.__version__
    assert {"commit", "processor", "python", "threads", "libraries"} <= found.keys()
    assert found["cpu_kernels"] == native.build_info().get("cpu_kernels", "none")
    (row,) = (r for r in found["rows"] if r["provider"] == "chunked" and r["n"] == 64)
    assert row["time_ms"] > 0
    assert 0 <= row["grad_error"] < 1e-5
    left_out = [(row["n"], row["provider"]) for row in found["left_out"]]
    assert (64, "dense") in left_out
    assert (32, "dense") not in left_out
    assert all(row["reason"] for row in found["left_out"])


def test_result_makes_a_plot_and_a_table(result, monkeypatch):
    found = json.loads(result.read_text(encoding="utf-8"))
    write_plot(found, result.with_suffix(".png"))
    assert result.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    table = cost_tables.by_rows(found["rows"], ["products", "dense"]).splitlines()
    assert table[0] == "| N | products | dense |"
    assert [line.split(" |")[0] for line in table[2:]] == ["| 32", "| 64"]
    refused = [{"problem": "supcon", "n": 64, "provider": "dense", "reason": "refused, loss"}]
    table = cost_tables.by_rows(found["rows"] + refused, ["products", "dense"]).splitlines()
    assert table[3].split(" | ")[2] == "refused |"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write_plot(found, result.with_name("none.png"))
    assert not result.with_name("none.png").exists()


def test_rows_are_added_to_a_result(result, tmp_path):
    found = json.loads(result.read_text(encoding="utf-8"))
    path = tmp_path / "both.json"
    write_result(path, found, append=False)
    write_result(path, found | {"command": "again"}, append=True)
    both = json.loads(path.read_text(encoding="utf-8"))
    assert both["command"] == f"{found['command']} && again"
    assert both["rows"] == 2 * found["rows"]
    assert both["left_out"] == 2 * found["left_out"]
    with pytest.raises(ValueError, match=r"torch of both\.json must be 0\.0 to append, got"):
        write_result(path, found | {"torch": "0.0"}, append=True)


def test_ratio_to_one_label():
    row = {"problem": "self-paced", "n": 64, "classes": 64, "provider": "native", "time_ms": 2.0}
    three = row | {"problem": "meta-labels", "classes": [8, 50, 2], "time_ms": 3.0}
    rows = [row, three, *(one | {"provider": "native, no cache"} for one in (row, three))]
    table = cost_tables.against_one_label(rows).splitlines()
    assert table[3].startswith("| 64 | 8, 50, 2 | 3.00 | - | 1.50 | 3.00 |")


@pytest.mark.slow
@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="needs Linux")
def test_memory_of_a_step(tmp_path):
    if not spcl_fast.native.is_built():
        pytest.skip("needs the extension")
    path = tmp_path / "memory.json"
    sizes = ["--n", "1024", "--dim", "16", "--threads", "1", "--tile-cache-mib", "0", "4"]
    assert bench_memory.main(["--impl", "native", *sizes, "--json", str(path)]) == 0
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert [row["tile_cache_mib"] for row in rows] == [0, 4]
    assert all(0 <= row["peak_mib"] <= row["limit_mib"] for row in rows)
    assert rows[0]["limit_mib"] == 3 * 1024 * 16 * 4 / 2**20 + 64


# Chunked, whose peak tests/ops/test_memory.py measures: a matrix of a MiB thrice, 64 MiB, and as
# much for panels, to which the process comes or not.
@pytest.mark.parametrize(("peak", "code"), [(131.0, 0), (131.1, 1)])
def test_memory_above_its_limit_fails(peak, code, monkeypatch):
    printed = SimpleNamespace(stdout=json.dumps({"peak_mib": peak, "seconds": 1.0}))
    monkeypatch.setattr(bench_memory.subprocess, "run", lambda *_command, **_how: printed)
    sizes = ["--n", "16384", "--dim", "16", "--threads", "1", "--tile-cache-mib", "0"]
    assert bench_memory.main(["--impl", "chunked", *sizes]) == code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 33}, "n must be even and at least 4, got 33"),
        ({"n": 2}, "n must be even and at least 4, got 2"),
        ({"tau": 0.0}, "tau and pace must be above 0"),
        ({"classes": 0}, "dim, classes and refs must be positive"),
        ({"refs": 0}, "dim, classes and refs must be positive, got 128, 64, 0"),
        ({"kind": "triplet"}, "kind must be one of self-paced, .* siglip, got 'triplet'"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
    ],
)
def test_problem_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        Problem(**({"kind": "supcon", "n": 32} | arguments))


def test_front_door(capsys):
    sizes = ["--n", "32", "--dim", "8", "--rounds", "1", "--threads", "1"]
    assert cli(["bench", "--problem", "ntxent", *sizes, "--provider", "chunked"]) == 0
    assert capsys.readouterr().out.startswith("ntxent      N=32 D=8 classes=64 tau=0.07 threads=1 ")
    assert cli(["bench", "--n", "33", "--provider", "chunked"]) == 2
    assert "n must be even and at least 4, got 33" in capsys.readouterr().err


def test_training_steps_and_their_parts(tmp_path, capsys):
    path = tmp_path / "training.json"
    small = ["--preset", "acdc-cpu", "--scans", "2", "--size", "32", "--rounds", "2"]
    assert bench_training.main([*small, "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert result["command"] == "python -m benchmarks.bench_training " + " ".join(
        [*small, "--json", str(path)]
    )
    stages = {row["stage"]: row for row in result["rows"]}
    assert stages["pretrain"]["images"] == 2 * 2 * 6
    assert stages["finetune"]["images"] == 10
    for row in stages.values():
        shares = [row[f"{part}_share"] for part in bench_training.PARTS]
        assert all(share > 0 for share in shares)
        assert row["ceiling_per_s"] == pytest.approx(row["images_per_s"] / shares[0], rel=0.01)
    assert len(capsys.readouterr().out.splitlines()) == 2
