"""What the ranks of the tests run: processes that stay for a whole file, and take programs."""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import spcl_fast.distributed.contrastive_rows  # noqa: F401  (the module, not the function)
from spcl_fast import InfoNCELoss, NTXentLoss, SelfPacedContrastiveLoss, SupConLoss, native
from spcl_fast.testing import make_embeddings, make_labels

Results = dict[str, Tensor]

READY = b"ready"  # says a rank that has joined the group


class Ranks:
    """W processes with one thread each and a gloo group between them.

    Args:
        world: number of ranks.
        folder: empty folder for the meeting point.
        timeout_s: of every collective.
    """

    def __init__(self, world: int, folder: Path, timeout_s: float = 60) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch._dynamo", "spcl_fast"])
        self.world = world
        self._pipes, self._processes = [], []
        for rank in range(world):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(there, rank, world, f"file://{folder}/meet", timeout_s),
                daemon=True,
            )
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)
        for pipe in self._pipes:  # no rank may end while another one still connects to it
            assert pipe.poll(120)
            assert pipe.recv_bytes() == READY

    def run(self, program: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Return what every rank's `program(rank, world, *arguments)` returned or raised."""
        for pipe in self._pipes:
            pipe.send_bytes(pickle.dumps((program, arguments)))
        return [self._answer(pipe) for pipe in self._pipes]

    def run_all(self, program: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The same where no rank may fail."""
        answers = self.run(program, *arguments)
        for answer in answers:
            if isinstance(answer, Failure):
                raise AssertionError(answer.text)
        return answers

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()

    @staticmethod
    def _answer(pipe: Any) -> Any:
        if not pipe.poll(120):
            raise TimeoutError("a rank must answer within 120 s, got nothing")
        try:
            return pickle.loads(pipe.recv_bytes())
        except EOFError:
            return Failure("EOFError", "the process has ended", 0.0)


@dataclass
class Failure:
    kind: str
    text: str
    seconds: float


def _serve(pipe: Any, rank: int, world: int, meeting: str, timeout_s: float) -> None:
    torch.set_num_threads(1)
    native.set_tile_cache_mib(0)
    dist.init_process_group(
        "gloo",
        init_method=meeting,
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=timeout_s),
    )
    pipe.send_bytes(READY)
    while True:
        try:
            program, arguments = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        start = time.monotonic()
        try:
            answer = program(rank, world, *arguments)
        except Exception as error:
            seconds = time.monotonic() - start
            answer = Failure(type(error).__name__, traceback.format_exc(), seconds)
        pipe.send_bytes(pickle.dumps(answer))


@dataclass(frozen=True)
class Case:
    """A batch, how its rows are spread, and the loss of it."""

    kind: str
    impl: str
    dtype: torch.dtype
    sizes: tuple[int, ...]
    """Rows of every rank."""
    lonely_rank: int = -1
    """The labels of its rows are unknown."""

    @property
    def num_rows(self) -> int:
        return sum(self.sizes)

    def rows_of(self, rank: int) -> slice:
        start = sum(self.sizes[:rank])
        return slice(start, start + self.sizes[rank])


class Model(nn.Module):
    """A linear projector and a loss with a learnable temperature, so that both can be trained."""

    def __init__(self, case: Case, group: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.projector = nn.Linear(5, 8)
        self.loss = loss_of(case, group)
        self.kind = case.kind
        self.bank = None
        if case.kind.endswith("bank"):
            self.bank = nn.Parameter(make_embeddings(7, 8, seed=9))
        self.to(case.dtype)

    def forward(self, x: Tensor, x2: Tensor, fine: Tensor, place: Tensor) -> Any:
        z, z2 = (nn.functional.normalize(self.projector(x), dim=1) for x in (x, x2))
        if self.kind.startswith("infonce"):
            return self.loss(z, z2 if self.bank is None else torch.cat([z2, self.bank]))
        if self.kind == "ntxent":
            return self.loss(z, z2)
        banked: Any = {}
        if self.bank is not None:
            banked = {"bank": self.bank, "bank_labels": torch.arange(7) % 4}
        if self.kind.startswith("supcon"):
            return self.loss(z, fine, **banked)
        if banked:
            banked["bank_labels"] = {"fine": torch.arange(7) % 4, "place": torch.linspace(0, 1, 7)}
        gamma = {"fine": torch.tensor(4.0), "place": 3.5}
        weight = {"fine": 1.0, "place": 0.3}
        return self.loss(z, {"fine": fine, "place": place}, gamma, weight, **banked)


def loss_of(case: Case, group: Any) -> nn.Module:
    options: dict[str, Any] = {"learnable_tau": True, "impl": case.impl, "group": group}
    if case.kind.startswith("infonce"):
        return InfoNCELoss(0.2, **options)
    if case.kind == "ntxent":
        return NTXentLoss(0.2, **options)
    if case.kind.startswith("supcon"):
        return SupConLoss(0.2, **options)
    mode: Any = "hard" if "hard" in case.kind else "linear"
    return SelfPacedContrastiveLoss(
        0.2, mode, correct_grad=mode == "linear", window={"place": 0.15}, **options
    )


def inputs_of(case: Case) -> list[Tensor]:
    N = case.num_rows
    x = make_embeddings(N, 5, norm=3.0).to(case.dtype)
    x2 = x + make_embeddings(N, 5, seed=1).to(case.dtype)
    fine = make_labels(N, 4, unknown_share=0.1)
    place = torch.linspace(0, 1, N, dtype=torch.float64)
    if case.lonely_rank >= 0:
        fine[case.rows_of(case.lonely_rank)] = -1
        place[case.rows_of(case.lonely_rank)] = -1
    return [x, x2, fine, place]


def step(rank: int, world: int, case: Case) -> Results:
    """One SGD step under DDP: outputs, parameters."""
    model = Model(case, dist.group.WORLD)
    wrapped = nn.parallel.DistributedDataParallel(model)
    return _step(model, wrapped, [x[case.rows_of(rank)] for x in inputs_of(case)])


def step_alone(case: Case) -> Results:
    """The same of the whole batch in this process."""
    model = Model(case, None)
    return _step(model, model, inputs_of(case))


def _step(model: nn.Module, wrapped: nn.Module, inputs: list[Tensor]) -> Results:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    out = wrapped(*inputs)
    out.loss.backward()
    optimizer.step()
    results = {
        name: value.detach() for name, value in out._asdict().items() if isinstance(value, Tensor)
    }
    for label, term in out.terms.items():
        results |= {f"{label} {name}": x.detach() for name, x in term._asdict().items()}
    return results | {f"after {name}": x.detach() for name, x in model.named_parameters()}


def gradients_of_rows(rank: int, world: int, case: Case, needy: tuple[bool, ...]) -> Any:
    """The gradient of the own rows, None for a rank whose rows need none."""
    x, _, fine, _ = inputs_of(case)
    z = x[case.rows_of(rank)].requires_grad_(needy[rank])
    out = SupConLoss(0.2, impl=case.impl, group=dist.group.WORLD)(z, fine[case.rows_of(rank)])
    out.loss.backward()
    return z.grad


def gradients_by_reduce_scatter(rank: int, world: int, case: Case) -> Tensor:
    """The same by the collective that gloo is not given by default."""
    from spcl_fast.distributed import _transfers

    before = _transfers.has_reduce_scatter
    _transfers.has_reduce_scatter = lambda *_: True
    try:
        return gradients_of_rows(rank, world, case, (True,) * world)
    finally:
        _transfers.has_reduce_scatter = before


def half_precision(rank: int, world: int, case: Case, group: bool) -> tuple[Tensor, Tensor]:
    x, _, fine, place = inputs_of(case)
    rows = case.rows_of(rank) if group else slice(None)
    z = nn.functional.normalize(x[rows], dim=1).bfloat16().requires_grad_()
    out = loss_of(case, dist.group.WORLD if group else None)(
        z, {"fine": fine[rows], "place": place[rows]}, 4.0
    )
    out.loss.backward()
    assert z.grad is not None
    return out.loss.detach(), z.grad


def in_a_subgroup(rank: int, world: int, case: Case) -> Any:
    """The loss of ranks 1 and 2 of 3, or what the outsider's constructor is told."""
    group = dist.new_group([1, 2])
    x, _, fine, _ = inputs_of(case)
    if rank == 0:
        try:
            SupConLoss(group=group)(x, fine)
        except ValueError as error:
            return str(error)
        return ""
    rows = case.rows_of(rank - 1)
    return NTXentLoss(0.2, group=group)(x[rows], x[rows] + 0.1).loss


def other_widths(rank: int, world: int) -> None:
    SupConLoss(group=dist.group.WORLD)(torch.ones(3, 4 + rank), torch.arange(3))


def other_labels(rank: int, world: int, how: str) -> None:
    """Ranks that differ in what each brings besides the features."""
    z, labels = torch.ones(3, 4), torch.arange(3)
    if how == "dtypes":
        labels = labels.to((torch.int64, torch.int32)[rank % 2])
    names = {"a": labels} if how == "number" and rank else {"a": labels, "b": labels}
    options: Any = {"group": dist.group.WORLD, "learnable_tau": how == "tau" and rank == 0}
    loss = SelfPacedContrastiveLoss(**options)
    banked = how == "bank" and rank == 0
    bank = {"bank": z, "bank_labels": {"a": labels, "b": labels}} if banked else {}
    loss(z, names, **bank)


def few_rows(rank: int, world: int, num_rows: int, kind: str) -> tuple[float, float]:
    """The losses of labels of two dtypes of no or one row, which is on the last rank."""
    size = num_rows if rank == world - 1 else 0
    z = make_embeddings(size, 4).requires_grad_()
    labels = {"a": torch.zeros(size, dtype=torch.int64), "b": torch.zeros(size, dtype=torch.int8)}
    if kind == "infonce":
        out = InfoNCELoss(group=dist.group.WORLD)(z, z * 1.0)
    else:
        out = SelfPacedContrastiveLoss(group=dist.group.WORLD)(z, labels, 3.0)
    out.loss.backward()
    assert z.grad is not None
    return out.loss.item(), z.grad.abs().sum().item()


def rows_with_gaps(rank: int, world: int) -> float:
    """One row of one feature a rank, which lies apart from the next in memory."""
    z, labels = torch.ones(2, 2, dtype=torch.float16), torch.zeros(2, dtype=torch.int64)
    return SupConLoss(group=dist.group.WORLD)(z[::2, ::2], labels[::2]).loss.item()


def count_pairs(rank: int, world: int, case: Case) -> int:
    """Twice the unordered pairs that this rank's log-sum-exps visit."""
    import sys

    module: Any = sys.modules["spcl_fast.distributed.contrastive_rows"]
    original, visited = module.pair_lse, [0]

    @functools.wraps(original)
    def counting(z: Tensor, tau: Any, *, refs: Tensor | None = None, impl: Any) -> Any:
        visited[0] += z.shape[0] ** 2 if refs is None else 2 * z.shape[0] * refs.shape[0]
        return original(z, tau, refs=refs, impl=impl)

    module.pair_lse = counting
    try:
        gradients_of_rows(rank, world, case, (True,) * world)
    finally:
        module.pair_lse = original
    return visited[0]


def peak_mib(rank: int, world: int, case: Case) -> float:
    """Peak of forward and backward above the inputs."""
    small = Case(case.kind, case.impl, case.dtype, (8,) * world)
    gradients_of_rows(rank, world, small, (True,) * world)
    before = _status_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    gradients_of_rows(rank, world, case, (True,) * world)
    return _status_mib("VmHWM") - before


def _status_mib(key: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    return math.nan


def one_rank_fails(rank: int, world: int, how: str) -> None:
    """Rank 0 does all, the last rank stops in the way that `how` says."""
    if rank == world - 1 and how == "dies":
        os._exit(1)
    if rank == world - 1 and how == "is silent":
        time.sleep(3)
        return
    z = make_embeddings(5, 4).requires_grad_()
    out = SupConLoss(group=dist.group.WORLD)(z, torch.zeros(5, dtype=torch.int64))
    if rank == world - 1 and how == "calls no backward":
        time.sleep(3)
        return
    out.loss.backward()


def second_derivative(rank: int, world: int) -> None:
    z = make_embeddings(5, 4).requires_grad_()
    out = SupConLoss(group=dist.group.WORLD)(z, torch.zeros(5, dtype=torch.int64))
    (dz,) = torch.autograd.grad(out.loss, z, create_graph=True)
    dz.sum().backward()
