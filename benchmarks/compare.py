"""Compare the providers on one problem after another, and say who was left out and why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.gate import MOST_ROWS, Gate, RefusedError
from benchmarks.measure import best_sgemm, peak_mib, sgemm_steps, time_steps
from benchmarks.problem import META_LABELS, Problem
from benchmarks.providers import Provider, Step, UnavailableError

Row = dict[str, Any]
LEAST_SGEMM_ROWS = 4096  # large products between steps of microseconds would empty their caches


@dataclass(frozen=True)
class Limits:
    """What one step of a provider may take."""

    memory_mib: float = 8192.0
    step_s: float = 30.0


@dataclass
class Comparison:
    """The rows so far, and what was left out of them."""

    limits: Limits
    rounds: int
    providers: Mapping[str, Provider]
    weighs: bool = True
    checked_rows: int = MOST_ROWS
    rows: list[Row] = field(default_factory=list)
    left_out: list[Row] = field(default_factory=list)

    def run(self, problem: Problem, threads: int) -> Iterator[Row]:
        """Check, time and weigh every provider of `problem`; yield and keep the rows."""
        torch.set_num_threads(threads)
        where = facts(problem, threads)
        steps, errors = self._admit(problem, where)
        products = sgemm_steps() if problem.n >= LEAST_SGEMM_ROWS else {}
        times = time_steps(steps | products, problem.embeddings(), self.rounds)
        sgemm = {name: times.pop(name) for name in products}
        for name, timing in times.items():
            row = where | {"provider": name} | timing | errors[name]
            row["gflops"] = round(problem.num_flops / timing["time_ms"] / 1e6, 1)
            if sgemm:
                row["sgemm_gflops"] = round(best_sgemm(sgemm), 1)
            row["peak_mib"] = peak_mib(name, problem, threads) if self.weighs else None
            for other in ("dense", "products"):
                if other in times:
                    row[f"{other}_over_this"] = round(
                        times[other]["time_ms"] / timing["time_ms"], 3
                    )
            self.rows.append(row)
            yield row

    def _admit(
        self, problem: Problem, where: Row
    ) -> tuple[dict[str, Step], dict[str, dict[str, float]]]:
        """Return the steps that are within the limits and right, warm, and their errors."""
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
            if reason is not None:
                self.left_out.append(where | {"provider": name, "reason": reason})
        return steps, errors

    def _over_limit(
        self, name: str, provider: Provider, problem: Problem, where: Row
    ) -> str | None:
        mib = provider.num_floats(problem) * 4 / 2**20
        if mib > self.limits.memory_mib:
            limit = f"--memory-mib {self.limits.memory_mib:,.0f}"
            return f"would take about {mib:,.0f} MiB, more than {limit}"
        shape = {key: where[key] for key in ("problem", "dim", "threads")}
        before = [
            row["time_ms"] * max(1, where["n"] / row["n"]) ** 2 / 1e3
            for row in self.rows
            if row["provider"] == name and shape.items() <= row.items()
        ]
        if before and before[-1] > self.limits.step_s:
            limit = f"--step-s {self.limits.step_s:g}"
            return f"would take about {before[-1]:,.0f} s a step, more than {limit}"
        return None


def facts(problem: Problem, threads: int) -> Row:
    """Return what a row says of its problem; gamma is None where it is inf."""
    row: Row = {"problem": problem.kind, "n": problem.n, "dim": problem.dim}
    several = problem.kind == "meta-labels"
    row["classes"] = list(META_LABELS.values()) if several else problem.classes
    if problem.num_refs:
        row["refs"] = problem.num_refs
    gamma = None if math.isinf(problem.gamma) else round(problem.gamma, 4)
    return row | {"tau": problem.tau, "gamma": gamma, "threads": threads}
