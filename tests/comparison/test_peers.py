"""The adapters of other packages compute the loss, on stand-ins for the packages."""

import sys

import pytest

from benchmarks.gate import Gate, RefusedError
from benchmarks.peers import PEERS, UnavailableError
from benchmarks.problem import Problem
from benchmarks.providers import PROVIDERS


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
    for member in stand_ins[module]:

        def forget(*args, member=member, **options):
            return member(*args, **{key: one for key, one in options.items() if key != lost})

        monkeypatch.setattr(sys.modules[module], member.__name__, forget)
    with pytest.raises(RefusedError):
        Gate(Problem(kind, 34, dim=32)).admit(PROVIDERS[name])


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_that_is_not_there_is_left_out(stand_ins, name, monkeypatch):
    for module in stand_ins:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnavailableError, match="does not import here"):
        PROVIDERS[name].build(Problem("clip", 32))
