"""Compare the providers on one problem after another, and say who was left out and why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.gate import Gate, RefusedError
from benchmarks.measure import peak_mib, time_steps
from benchmarks.problem import Problem
from benchmarks.providers import Provider, Step, UnavailableError

Row = dict[str, Any]


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
    rows: list[Row] = field(default_factory=list)
    left_out: list[Row] = field(default_factory=list)

    def run(self, problem: Problem, threads: int) -> Iterator[Row]:
        """Check, time and weigh every provider of `problem`; yield and keep the rows."""
        torch.set_num_threads(threads)
        where = facts(problem, threads)
        steps, errors = self._admit(problem, where)
        times = time_steps(steps, problem.embeddings(), self.rounds)
        for name, timing in times.items():
            row = where | {"provider": name} | timing | errors[name]
            row["peak_mib"] = peak_mib(name, problem, threads)
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
        gate = Gate(problem)
        for name, provider in self.providers.items():
            if problem.kind not in provider.kinds:
                continue
            reason = self._over_limit(name, provider, where)
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

    def _over_limit(self, name: str, provider: Provider, where: Row) -> str | None:
        mib = provider.num_floats(where["n"], where["dim"]) * 4 / 2**20
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
    row = {"problem": problem.kind, "n": problem.n, "dim": problem.dim, "classes": problem.classes}
    gamma = None if math.isinf(problem.gamma) else round(problem.gamma, 4)
    return row | {"tau": problem.tau, "gamma": gamma, "threads": threads}
