"""The comparison of benchmarks/ on tensors of the CPU: a fake torch.cuda, and peers' stand-ins."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
if (REPOSITORY / "benchmarks").exists():
    sys.path += [str(REPOSITORY), str(HERE)]
else:
    collect_ignore_glob = ["test_*.py"]
MIB = 2**20


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


def put(monkeypatch):
    """Put a clock and an allocator in the place of the device's, and return them."""
    from benchmarks import device, measure

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


@pytest.fixture(scope="session")
def put_fake_cuda():
    return put


@pytest.fixture
def cuda(monkeypatch):
    return put(monkeypatch)


@pytest.fixture
def stand_ins(monkeypatch):
    """Stand-ins for the packages, and the names of their modules."""
    import peer_stand_ins

    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    for name, members in peer_stand_ins.STAND_INS.items():
        module = ModuleType(name)
        for member in members:
            setattr(module, member.__name__, member)
        monkeypatch.setitem(sys.modules, name, module)
    return peer_stand_ins.STAND_INS
