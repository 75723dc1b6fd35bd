"""Compare the providers on one problem after another, and record what was left out and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.device import Cpu, Device
from benchmarks.gate import MOST_ROWS, Gate, RefusedError
from benchmarks.measure import best_rate, on, peak_mib, time_steps, weigh_step
from benchmarks.peers import UnavailableError
from benchmarks.problem import META_LABELS, Problem
from benchmarks.providers import OURS, Provider, Step

Row = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """Limits on one step of a provider."""

    memory_mib: float = 8192.0
    step_s: float = 30.0


@dataclass
class Comparison:
    """The rows so far, and what was left out of them."""

    limits: Limits
    rounds: int
    providers: Mapping[str, Provider]
    device: Device = field(default_factory=Cpu)
    weighs: bool = True
    checked_rows: int = MOST_ROWS
    rows: list[Row] = field(default_factory=list)
    left_out: list[Row] = field(default_factory=list)

    def run(self, problem: Problem, threads: int) -> Iterator[Row]:
        """Check every provider of `problem`, measure time and memory; yield and keep the rows."""
        torch.set_num_threads(threads)
        where = facts(problem, threads)
        steps, errors = self._admit(problem, where)
        bound = on(steps, problem.embeddings())
        times, best = self._time(bound, problem)
        for name in steps:
            timing = times[name]
            row = where | {"provider": name} | timing | errors[name]
            row |= rates(problem, timing["time_ms"], best)
            row["peak_mib"] = self._peak_mib(name, bound[name], problem, threads)
            for other in ("dense", "products"):
                if other in steps:
                    row[f"{other}_over_this"] = round(
                        times[other]["time_ms"] / timing["time_ms"], 3
                    )
            self.rows.append(row)
            yield row

    def _time(
        self, bound: Mapping[str, Callable[[], object]], problem: Problem
    ) -> tuple[dict[str, Row], dict[str, float | None]]:
        """Return the times by provider, and the best of each kind of ceiling."""
        ceilings = self.device.ceilings(problem.n, problem.torch_dtype) if bound else {}
        runs = {name: ceiling.run for name, ceiling in ceilings.items()}
        times = time_steps({**bound, **runs}, self.rounds, self.device)
        return times, {kind: best_rate(kind, ceilings, times) for kind in ("mm", "copy")}

    def _peak_mib(
        self, name: str, run: Callable[[], object], problem: Problem, threads: int
    ) -> float | None:
        if not self.weighs:
            return None
        if self.device.name == "cpu":
            return peak_mib(name, problem, threads)
        return weigh_step(run, self.device)["peak_mib"]

    def _admit(
        self, problem: Problem, where: Row
    ) -> tuple[dict[str, Step], dict[str, dict[str, float]]]:
        """Return the steps that are correct and within the limits, warm, and their errors."""
        steps: dict[str, Step] = {}
        errors: dict[str, dict[str, float]] = {}
        gate = Gate(problem, self.checked_rows)
        for name, provider in self.providers.items():
            if problem.kind not in provider.kinds:
                continue
            reason = self._over_limit(name, provider, problem, where)
            try:
                if reason is None:
                    steps[name], errors[name] = gate.admit(provider)
            except UnavailableError as error:
                reason = str(error)
            except RefusedError as error:
                reason = f"refused, {error}"
            except torch.OutOfMemoryError:
                reason = "ran out of the memory of the device"
            except Exception as error:
                if name in OURS:
                    raise
                first = f"{type(error).__name__}: {error}".splitlines()[0]
                reason = f"does not run here, {first}"
            if reason is not None:
                self.left_out.append(where | {"provider": name, "reason": reason})
        return steps, errors

    def _over_limit(
        self, name: str, provider: Provider, problem: Problem, where: Row
    ) -> str | None:
        if self.device.name not in provider.devices:
            return f"runs on {' and '.join(provider.devices)} only"
        mib = provider.num_floats(problem) * 4 / 2**20
        if mib > self.limits.memory_mib:
            limit = f"--memory-mib {self.limits.memory_mib:,.0f}"
            return f"would take about {mib:,.0f} MiB, more than {limit}"
        shape = {key: where[key] for key in ("problem", "dim", "dtype", "precision", "threads")}
        before = [
            row["time_ms"] * max(1, where["n"] / row["n"]) ** 2 / 1e3
            for row in self.rows
            if row["provider"] == name and shape.items() <= row.items()
        ]
        if before and before[-1] > self.limits.step_s:
            limit = f"--step-s {self.limits.step_s:g}"
            return f"would take about {before[-1]:,.0f} s a step, more than {limit}"
        return None


def rates(problem: Problem, time_ms: float, best: Mapping[str, float | None]) -> Row:
    """Return the rate of a step, and the device's ceilings "mm" and "copy" if timed."""
    row: Row = {"gflops": round(problem.num_flops / time_ms / 1e6, 1)}
    if best["mm"] is not None:
        row["sgemm_gflops" if best["copy"] is None else "mm_gflops"] = round(best["mm"], 1)
    if best["mm"] is not None and best["copy"] is not None:
        row["mm_share"] = round(problem.num_flops / time_ms / 1e6 / best["mm"], 4)
        row["copy_gbs"] = round(best["copy"], 1)
        row["copy_share"] = round(problem.num_bytes / time_ms / 1e6 / best["copy"], 6)
    return row


def facts(problem: Problem, threads: int) -> Row:
    """Return the description of the problem in a row; gamma is None for inf."""
    row: Row = {"problem": problem.kind, "n": problem.n, "dim": problem.dim}
    several = problem.kind == "meta-labels"
    row["classes"] = list(META_LABELS.values()) if several else problem.classes
    if problem.num_refs:
        row["refs"] = problem.num_refs
    gamma = None if math.isinf(problem.gamma) else round(problem.gamma, 4)
    row |= {"tau": problem.tau, "gamma": gamma, "threads": threads, "dtype": problem.dtype}
    return row | {"precision": torch.get_float32_matmul_precision()}
