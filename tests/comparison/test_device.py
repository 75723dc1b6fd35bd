"""The comparison on a GPU, without one: a fake torch.cuda, tensors on the CPU."""

import json
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import (
    device,
    device_table,
    measure,
)
from benchmarks._provenance import write_result
from benchmarks.compare import Comparison, Limits, rates
from benchmarks.gate import Gate, RefusedError
from benchmarks.peers import PEERS
from benchmarks.plot import write_plot
from benchmarks.problem import DIAGONAL, TWO_SIDED, Problem
from benchmarks.providers import ALL, PROVIDERS, SOFTMAX, Provider
from spcl_fast.cli import main as cli

MIB = 2**20
SMALL = ["--n", "32", "--dim", "16", "--refs", "40", "--rounds", "1", "--threads", "1"]


def test_a_time_is_what_passes_between_the_events(cuda):
    gpu = device.Cuda("cpu")
    gpu._cold.fill_(7)

    def step():
        assert not gpu._cold.any()  # L2 is emptied before
        cuda.calls.append("step")
        cuda.now += 3.0

    assert gpu.time_ms(step) == 3.25  # recording the end takes .25 here
    assert cuda.calls == ["record", "step", "record"]


def test_the_peak_is_that_of_the_step(cuda):
    def step():
        cuda.hold(5 * MIB)
        cuda.hold(-5 * MIB)

    cuda.peak = 99 * MIB  # of what ran before
    assert measure.weigh_step(step, device.Cuda("cpu"))["peak_mib"] == 5.0
    assert cuda.calls == ["wait", "reset", "wait", "wait"]


# float32 has 4 bytes, half precision 2.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ceilings(cuda, dtype):
    ceilings = device.Cuda("cpu").ceilings(32, dtype)
    assert {name: (one.kind, one.amount) for name, one in ceilings.items()} == {
        "8 x 4 x 8": ("mm", 2 * 8 * 4 * 8),
        "16 x 2 x 16": ("mm", 2 * 16 * 2 * 16),
        "copy": ("copy", 2 * MIB),
    }
    results = [one.run() for one in ceilings.values()]
    assert all(isinstance(found, torch.Tensor) and found.dtype == dtype for found in results)


def test_the_cpu_has_the_ceiling_it_had(monkeypatch):
    monkeypatch.setattr(device, "SGEMM_SHAPES", ((8, 4, 8),))
    assert device.Cpu().ceilings(4095, torch.float32) == {}
    assert list(device.Cpu().ceilings(4096, torch.bfloat16)) == ["8 x 4 x 8"]
    row = rates(Problem("supcon", 32, dim=8), 1.0, {"mm": 5.0, "copy": None})
    assert row == {"gflops": 0.0, "sgemm_gflops": 5.0}


def test_shares_of_the_ceilings():
    problem = Problem("infonce", 1000, dim=64, dtype="bfloat16")
    row = rates(problem, 2.0, {"mm": 1000.0, "copy": 4.0})
    assert row["gflops"] == 8 * 1000 * 1000 * 64 / 2.0 / 1e6 == 256.0
    assert row["mm_share"] == 0.256
    assert row["copy_share"] == 3 * 2000 * 64 * 2 / 2.0 / 1e6 / 4.0
    assert (row["mm_gflops"], row["copy_gbs"]) == (1000.0, 4.0)


def test_without_a_device_nothing_is_written(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(command, "REPOSITORY", tmp_path)
    path = tmp_path / "losses.json"
    assert command.main(["--device", "cuda", *SMALL, "--json", str(path)]) == 2
    assert cli(["bench", "--device", "cuda", *SMALL]) == 2
    sentence = "--device must be cpu where there is no CUDA device, got cuda\n"
    assert capsys.readouterr() == ("", 2 * sentence)
    assert list(tmp_path.iterdir()) == []


def test_what_runs_where():
    cpu, gpu = command.parse([]), command.parse(["--device", "cuda"])
    assert set(gpu.provider) - set(cpu.provider) == {"triton", *PEERS}
    assert set(cpu.provider) - set(gpu.provider) == {"native, no cache"}
    assert cpu.problem == ("self-paced", "supcon", "ntxent")
    assert gpu.problem == ALL
    for kind in ALL:
        there = {name for name in PEERS if kind in PROVIDERS[name].kinds}
        softmax = set(PEERS) - {"siglip-kernel"} if kind in DIAGONAL else set()
        assert there == ({"siglip-kernel"} if kind == "siglip" else softmax)


def test_quick_is_a_star_of_few_sizes():
    args = command.parse(["--device", "cuda", "--quick", "--n", "32", "64"])
    assert (args.n, args.dim, args.rounds) == ([32, 64], [128, 256, 512], 3)  # what is given stays
    assert "triton" in args.provider
    assert "siglip-kernel" in args.provider
    points = command.grid(command.parse(["--device", "cuda", "--quick"]))
    assert ("bfloat16", "self-paced", 128, 16384) in [(p[0], p[2], p[3], p[6]) for p in points]
    assert {p[6] for p in points} == {60, 1024, 4096, 16384, 65536}
    assert {p[3] for p in points} == {128, 256, 512}
    assert {p[0] for p in points} == {"bfloat16", "float32"}
    assert len(points) == 1 + 4 + 2 + 1 + 5


def test_quick_prints_a_table(cuda, stand_ins, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "REPOSITORY", tmp_path)
    some = ["--provider", "dense", "siglip-kernel", "--problem", "siglip"]
    small = [*SMALL, "--dtype", "float32", *some]
    bench_host = pytest.importorskip("benchmarks.bench_host", exc_type=ImportError)
    bench_kernels = pytest.importorskip("benchmarks.bench_kernels", exc_type=ImportError)
    kernels, training, host = [], [], []
    monkeypatch.setattr(bench_kernels, "main", kernels.extend)
    monkeypatch.setattr(command.bench_training, "main", training.extend)
    monkeypatch.setattr(bench_host, "main", host.extend)
    assert command.main(["--device", "cuda", "--quick", *small]) == 0
    assert training[:4] == ["--device", "cuda", "--rounds", "3"]
    assert host[:2] == kernels[:2] == ["--rounds", "3"]
    assert [Path(x[-1]).name for x in (kernels, training, host)] == [
        *("kernels.json", "training.json", "host.json"),
    ]
    out = capsys.readouterr().out
    assert "| SigLIP | float32 | 16 | 32 | siglip-kernel | 0.25 |" in out
    assert (tmp_path / "benchmarks" / "results" / "nvidia-fake-x1-80gb" / "losses.json").exists()


def test_kernels_alone(cuda, tmp_path, monkeypatch, capsys):
    bench_kernels = pytest.importorskip("benchmarks.bench_kernels", exc_type=ImportError)
    path = tmp_path / "kernels.json"
    small = ["--n", "70", "--dim", "16", "--dtype", "float32", "--rounds", "1"]
    assert bench_kernels.main([*small, "--json", str(path)]) == 0
    rows = {row["kernel"]: row for row in json.loads(path.read_text())["rows"]}
    assert list(rows) == ["planes", "sums", "rows"]
    assert {row["time_ms"] for row in rows.values()} == {0.25}  # of the fake clock
    assert rows["sums"]["gflops"] == pytest.approx(70**2 * 16 / 0.25e6, abs=0.05)
    assert rows["rows"]["gflops"] == pytest.approx(4 * 70**2 * 16 / 0.25e6, abs=0.05)
    assert 0 < rows["sums"]["error"] < 1e-6
    assert 0 < rows["rows"]["error"] < 1e-5
    assert "mm_share" in rows["rows"]
    assert len(capsys.readouterr().out.splitlines()) == 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_kernels.main([*small, "--json", str(path)]) == 2


def test_crossover():
    row = {"problem": "supcon", "dtype": "float32", "n": 64}
    rows = [
        row | {"dim": dim, "provider": name, "time_ms": time}
        for dim, triton, native in ((128, 1.0, 2.0), (256, 2.0, 1.9), (512, 4.0, 3.0))
        for name, time in (("triton", triton), ("native", native))
    ]
    assert "faster than triton from D = 256 on: SupCon" in device_table.crossover(rows)
    assert "at no D up to 128" in device_table.crossover(rows[:2])
    assert device_table.crossover(rows[:1]) == ""


@pytest.fixture(scope="module")
def result(tmp_path_factory, put_fake_cuda):
    """The whole command on the fake device; the kernels are interpreted."""
    pytest.importorskip("triton")
    folder, out = tmp_path_factory.mktemp("repository"), StringIO()
    some = ["--provider", "products", "dense", "triton", "native, no cache", "inf-cl"]
    some += ["--problem", "supcon", "infonce"]
    arguments = ["--device", "cuda", *SMALL, *some, "--dtype", "float32", "float16"]
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        put_fake_cuda(patch)
        patch.setattr(command, "REPOSITORY", folder)
        assert command.main([*arguments, "--precision", "highest"]) == 0
    torch.set_num_threads(threads)
    path = folder / "benchmarks" / "results" / "nvidia-fake-x1-80gb" / "losses.json"
    return json.loads(path.read_text(encoding="utf-8")) | {"out": out.getvalue()}


@pytest.mark.slow
def test_result_of_a_device(result):
    assert result["device"] == {
        "name": "NVIDIA Fake X1 (80GB)",
        "capability": "9.0",
        "multiprocessors": 132,
        "memory_gib": 80.0,
        "driver": "600.1",
        "cuda": torch.version.cuda,
        "triton": sys.modules["triton"].__version__,
    }
    assert set(PEERS) < result["libraries"].keys()
    ran = {(row["problem"], row["dtype"], row["provider"]) for row in result["rows"]}
    for dtype in ("float32", "float16"):
        assert ("infonce", dtype, "triton") in ran
        assert ("supcon", dtype, "dense") in ran
    shares = {"mm_gflops", "mm_share", "copy_gbs", "copy_share"}
    for row in result["rows"]:
        assert shares < row.keys()
        assert "sgemm_gflops" not in row
        assert row["precision"] == "highest"
        assert row["time_ms"] == 0.25  # the fake clock stands still in a step
        assert row["peak_mib"] == 0.0
    reasons = {(row["provider"], row["reason"]) for row in result["left_out"]}
    assert ("native, no cache", "runs on cpu only") in reasons
    assert any(name == "inf-cl" and "not import here" in reason for name, reason in reasons)
    assert torch.get_float32_matmul_precision() == "highest"
    lines = result["out"].splitlines()
    assert len(lines) == len(result["rows"])
    assert all("TF/s" in line and "of mm" in line and "of copy" in line for line in lines)
    assert sum("float16 triton" in line for line in lines) == 2


@pytest.mark.slow
def test_table_and_plot_of_a_device(result, tmp_path):
    text = device_table.render(result, "losses.json")
    head, table, reasons, source = text.split("\n\n")
    assert head.startswith("NVIDIA Fake X1 (80GB), driver 600.1, CUDA ")
    first, _, *lines = table.splitlines()
    assert first == "| loss | dtype | D | N | provider | ms | MiB | TFLOP/s | of mm | of copy |"
    assert {line.count("|") for line in lines} == {11}
    assert any(line.startswith("| InfoNCE | float16 | 16 | 32 | triton | 0.25 |") for line in lines)
    assert any(line.endswith("| native, no cache | - | - | - | - | - |") for line in lines)
    assert "- native, no cache, SupCon, float32, N = 32: runs on cpu only" in reasons.splitlines()
    assert source.startswith("[losses.json](./losses.json) from `python -m benchmarks --device")
    write_plot(result, tmp_path / "losses.png")
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_rows_of_another_device_are_not_added(result, tmp_path):
    path = tmp_path / "both.json"
    write_result(path, result, append=False)
    other = result | {"device": result["device"] | {"name": "NVIDIA Fake X2"}}
    with pytest.raises(ValueError, match=r"device of both\.json must be .*X2.* to append, got"):
        write_result(path, other, append=True)


def test_what_fails_on_a_device_is_left_out_with_a_sentence(cuda):
    def breaks(error):
        def build(problem):
            raise error

        return Provider(build, ("infonce",), devices=("cuda",))

    broken = {
        "peer": breaks(AssertionError("needs bf16\nand more")),
        "large": breaks(torch.OutOfMemoryError("CUDA out of memory")),
    }
    comparison = Comparison(Limits(), 1, broken, device.Cuda("cpu"))
    assert list(comparison.run(Problem("infonce", 32, dim=8), 1)) == []
    assert [row["reason"] for row in comparison.left_out] == [
        "does not run here, AssertionError: needs bf16",
        "ran out of the memory of the device",
    ]
    ours = Comparison(Limits(), 1, {"triton": breaks(KeyError("bug"))}, device.Cuda("cpu"))
    with pytest.raises(KeyError):
        list(ours.run(Problem("infonce", 32, dim=8), 1))


def test_rows_outlive_a_fault_of_the_device(cuda, tmp_path, monkeypatch):
    dense = PROVIDERS["dense"]

    def faulty(problem):
        assert problem.kind == "infonce", "illegal memory access"
        return dense.build(problem)

    monkeypatch.setitem(PROVIDERS, "dense", Provider(faulty))
    path = tmp_path / "losses.json"
    arguments = ["--device", "cuda", *SMALL, "--provider", "dense", "--json", str(path)]
    with pytest.raises(AssertionError, match="illegal memory access"):
        command.main([*arguments, "--problem", "infonce", "clip"])
    assert not path.exists()
    kept = json.loads((tmp_path / "losses.partial.json").read_text(encoding="utf-8"))
    assert [row["problem"] for row in kept["rows"]] == ["infonce"]


# A ragged number of rows; bfloat16 and float16 have eps 2^-7 and 2^-10.
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ALL)
def test_half_precision_passes_the_gate(kind, dtype):
    gate = Gate(Problem(kind, 66, dim=37, classes=5, refs=131, dtype=dtype))
    right = "chunked" if kind in SOFTMAX else "dense"
    for name in ("dense", right):
        step, errors = gate.admit(PROVIDERS[name])
        assert step(gate.z)[1].dtype == getattr(torch, dtype)
        assert errors["loss_error"] < 0.02

    def ten_percent_off(problem):
        step = PROVIDERS[right].build(problem)
        return lambda z: (step(z)[0], 1.1 * step(z)[1])

    with pytest.raises(RefusedError, match="grad"):
        gate.admit(Provider(ten_percent_off))


def test_half_precision_agrees_beyond_the_rows_that_are_checked():
    gate = Gate(Problem("supcon", 64, dim=8, dtype="bfloat16"), most_rows=32)
    gate.admit(PROVIDERS["dense"])
    gate.admit(PROVIDERS["chunked"])

    def wrong_at_64(problem):
        right = PROVIDERS["chunked"].build(problem)
        return lambda z: (right(z)[0] * (1.1 if len(z) == 64 else 1.0), right(z)[1])

    with pytest.raises(RefusedError, match="64 rows"):
        gate.admit(Provider(wrong_at_64))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])  # the reference, and half products
@pytest.mark.parametrize("kind", ["supcon", *TWO_SIDED])
def test_compiled_code_is_the_dense_code(kind, dtype, monkeypatch):
    """Compiling takes seconds: what would be compiled runs as it is."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    Gate(Problem(kind, 34, dim=9, classes=5, dtype=dtype)).admit(PROVIDERS["torch.compile"])
