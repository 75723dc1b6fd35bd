"""The comparison on a GPU, without one: a fake torch.cuda, tensors on the CPU, peers' stand-ins."""

import json
import math
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.nn import functional

REPOSITORY = Path(__file__).resolve().parents[1]
if not (REPOSITORY / "benchmarks").exists():
    pytest.skip("needs the repository", allow_module_level=True)
sys.path.append(str(REPOSITORY))

from benchmarks import __main__ as command  # noqa: E402
from benchmarks import (  # noqa: E402
    device,
    device_table,
    measure,
)
from benchmarks._provenance import write_result  # noqa: E402
from benchmarks.compare import Comparison, Limits, rates  # noqa: E402
from benchmarks.gate import Gate, RefusedError  # noqa: E402
from benchmarks.peers import PEERS, UnavailableError  # noqa: E402
from benchmarks.plot import write_plot  # noqa: E402
from benchmarks.problem import DIAGONAL, TWO_SIDED, Problem  # noqa: E402
from benchmarks.providers import ALL, PROVIDERS, SOFTMAX, Provider  # noqa: E402
from spcl_fast.cli import main as cli  # noqa: E402

MIB = 2**20
SMALL = ["--n", "32", "--dim", "16", "--refs", "40", "--rounds", "1", "--threads", "1"]


@pytest.fixture(autouse=True)
def threads():
    """The comparison sets the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class FakeCuda:
    """A clock in ms, an allocator in bytes, and a list of what was called."""

    def __init__(self):
        self.now, self.held, self.peak, self.calls = 0.0, 10 * MIB, 0, []

    def event(self, enable_timing=False):
        assert enable_timing
        return FakeEvent(self)

    def reset(self):
        self.calls.append("reset")
        self.peak = self.held

    def hold(self, num_bytes):
        self.held += num_bytes
        self.peak = max(self.peak, self.held)


class FakeEvent:
    def __init__(self, cuda):
        self.cuda, self.at, self.is_done = cuda, None, False

    def record(self):
        self.cuda.calls.append("record")
        self.cuda.now += 0.25
        self.at = self.cuda.now

    def synchronize(self):
        self.is_done = True

    def elapsed_time(self, end):
        assert end.is_done, "the time of an event that nobody waited for"
        return end.at - self.at


@pytest.fixture
def cuda(monkeypatch):
    return put_fake_cuda(monkeypatch)


def put_fake_cuda(monkeypatch):
    """Put a clock and an allocator in the place of the device's, and return them."""
    fake = FakeCuda()
    properties = SimpleNamespace(
        name="NVIDIA Fake X1 (80GB)",
        major=9,
        minor=0,
        multi_processor_count=132,
        total_memory=80 * 2**30,
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: fake.calls.append("wait"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", fake.reset)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: fake.held)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: fake.peak)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: properties)
    monkeypatch.setattr(device, "driver", lambda: "600.1")
    monkeypatch.setattr(device, "MM_SHAPES", ((8, 4, 8), (16, 2, 16)))
    monkeypatch.setattr(device, "COPY_MIB", 1)
    monkeypatch.setattr(device, "L2_MIB", 1)
    monkeypatch.setattr(measure, "LEAST_SECONDS", 0.0)
    monkeypatch.setitem(device.DEVICES, "cuda", lambda: device.Cuda("cpu"))
    return fake


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
def result(tmp_path_factory):
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


# Stand-ins: what the packages compute, by the signatures that they have.


def cal_flash_loss(q, k, labels=None, scale=None, head_dim=256):
    """inf_cl 1.2.1."""
    if labels is None:
        labels = torch.arange(q.shape[0], device=q.device)
    q = ((1.0 if scale is None else scale) * q).view(q.shape[0], -1, head_dim).float().flatten(1)
    k = k.view(k.shape[0], -1, head_dim).float().flatten(1)
    return (q @ k.T).logsumexp(1) - (q * k[labels]).sum(1)


class Rescale(torch.autograd.Function):
    """The identity, whose gradient is multiplied."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return ctx.factor * grad, None


class Memeff(torch.nn.Module):
    """memeff 0.3.1: rows are normalised and gradients rescaled unless it is told not to."""

    def prepare(self, *sides):
        scale = math.sqrt(len(sides[0]) * self.temperature) if self.stable else 1.0
        for side in sides:
            unit = side if self.normalized_inputs else functional.normalize(side, dim=1)
            yield Rescale.apply(unit.float(), scale)


class MemoryEfficientCLIPLoss(Memeff):
    def __init__(
        self,
        temperature=0.07,
        normalized_inputs=False,
        stable=True,
        tau_plus=0.0,
        label_smoothing=0.0,
    ):
        super().__init__()
        assert tau_plus == label_smoothing == 0
        self.temperature, self.normalized_inputs = temperature, normalized_inputs
        self.stable = stable

    def forward(self, image_features, text_features, tau_plus=None):
        x, y = self.prepare(image_features, text_features)
        sim, own = x @ y.T / self.temperature, torch.arange(len(x))
        return (functional.cross_entropy(sim, own) + functional.cross_entropy(sim.T, own)) / 2


class MemoryEfficientQwen3Loss(Memeff):
    def __init__(
        self,
        temperature=0.07,
        margin=0.1,
        use_qq_negatives=False,
        use_dd_negatives=False,
        normalized_inputs=False,
        stable=True,
        tau_plus=0.0,
        label_smoothing=0.0,
    ):
        super().__init__()
        assert tau_plus == label_smoothing == 0
        assert not use_qq_negatives
        assert not use_dd_negatives
        self.temperature, self.margin, self.stable = temperature, margin, stable
        self.normalized_inputs = normalized_inputs

    def forward(self, query_features, doc_features, hard_negative_features=None, tau_plus=None):
        q, d = self.prepare(query_features, doc_features)
        cosine = q @ d.T
        dropped = cosine.detach() > cosine.detach().diagonal()[:, None] + self.margin
        sim = cosine.masked_fill(dropped, -math.inf) / self.temperature
        return functional.cross_entropy(sim, torch.arange(len(q)))


class LigerFusedLinearCrossEntropyLoss(torch.nn.Module):
    """liger-kernel 0.8.5: the weight comes first."""

    def forward(self, lin_weight, _input, target, bias=None):
        return functional.cross_entropy((_input @ lin_weight.t()).float(), target)


def linear_cross_entropy(
    e,
    c,
    targets,
    ignore_index=-100,
    softcap=None,
    reduction="mean",
    shift=False,
    filter_eps="high",
    impl="cce",
):
    """cut-cross-entropy 25.1.1: skips small gradients unless it is told not to."""
    assert reduction == "mean"
    sim = (e @ c.T).float()
    if filter_eps is not None:
        sim.register_hook(lambda grad: grad * (grad.abs() > 1e-3 / len(e)))
    return functional.cross_entropy(sim, targets)


def fused_siglip_loss(img_features, txt_features, log_temperature, bias):
    """siglip-kernel 0.1.2."""
    logits = (img_features @ txt_features.T).float() * log_temperature.exp() + bias
    signs = 2 * torch.eye(len(logits)) - 1
    return -functional.logsigmoid(signs * logits).sum() / len(logits)


STAND_INS = {
    "inf_cl": [cal_flash_loss],
    "memeff": [MemoryEfficientCLIPLoss, MemoryEfficientQwen3Loss],
    "liger_kernel.transformers": [LigerFusedLinearCrossEntropyLoss],
    "cut_cross_entropy": [linear_cross_entropy],
    "siglip_kernel": [fused_siglip_loss],
}


@pytest.fixture
def stand_ins(monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    for name, members in STAND_INS.items():
        module = ModuleType(name)
        for member in members:
            setattr(module, member.__name__, member)
        monkeypatch.setitem(sys.modules, name, module)


# 512 features: two heads of inf-cl; 34 rows: ragged for tiles of any power of two.
@pytest.mark.parametrize(("n", "dim"), [(34, 32), (34, 512)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, (_, kinds) in PEERS.items() for kind in kinds]
)
def test_adapters_compute_the_loss(stand_ins, name, kind, dtype, n, dim):
    _, errors = Gate(Problem(kind, n, dim=dim, dtype=dtype)).admit(PROVIDERS[name])
    assert errors["loss_error"] < {"float32": 1e-6, "bfloat16": 0.01}[dtype]


# What a user gets who leaves the options alone, and what we would if one were lost.
@pytest.mark.parametrize(
    ("kind", "name", "lost"),
    [
        ("clip", "memeff", "stable"),
        ("infonce", "memeff", "stable"),
        ("infonce", "memeff", "margin"),
        ("infonce", "cut-cross-entropy", "filter_eps"),
        ("clip", "inf-cl", "scale"),
    ],
)
def test_an_adapter_that_loses_an_option_is_refused(stand_ins, kind, name, lost, monkeypatch):
    module = {"memeff": "memeff", "inf-cl": "inf_cl"}.get(name, "cut_cross_entropy")
    for member in STAND_INS[module]:

        def forget(*args, member=member, **options):
            return member(*args, **{key: one for key, one in options.items() if key != lost})

        monkeypatch.setattr(sys.modules[module], member.__name__, forget)
    with pytest.raises(RefusedError):
        Gate(Problem(kind, 34, dim=32)).admit(PROVIDERS[name])


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_that_is_not_there_is_left_out(name, monkeypatch):
    for module in STAND_INS:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnavailableError, match="does not import here"):
        PROVIDERS[name].build(Problem("clip", 32))
