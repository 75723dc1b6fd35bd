"""Time of several providers in turns in one process; peak memory of each in a fresh one.

Between the providers the machine's own matrix products are timed: torch.mm into memory that is
there, the fastest of a few shapes.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import random
import statistics
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.problem import Problem
from benchmarks.providers import PROVIDERS, Provider, Step

CLEAR_REFS = Path("/proc/self/clear_refs")  # Linux only
LEAST_SECONDS = 0.5  # a size, so that steps of a millisecond get hundreds of rounds
MOST_SECONDS = 8.0  # a provider, after two runs
SGEMM_SHAPES = ((2048, 2048, 2048), (4096, 1024, 4096), (8192, 256, 8192), (8192, 8192, 256))


def time_steps(steps: Mapping[str, Step], z: Tensor, rounds: int) -> dict[str, dict[str, Any]]:
    """Time steps that have run before, in turns of changing order: each follows every other.

    Args:
        steps: what to time, by name.
        z: their input.
        rounds: runs of each, more where all are short, fewer (at least 2) of one that is long.

    Returns:
        Median, 20th and 80th percentile in ms and the number of runs, by name.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    order, turns = list(steps.items()), random.Random(0)
    begin, done = time.perf_counter(), 0
    while done < rounds or (time.perf_counter() - begin < LEAST_SECONDS and done < 50 * rounds):
        turns.shuffle(order)
        for name, step in order:
            if len(times[name]) >= 2 and sum(times[name]) > 1e3 * MOST_SECONDS:
                continue
            start = time.perf_counter()
            step(z)
            times[name].append(1e3 * (time.perf_counter() - start))
        done += 1
    return {name: _summary(values) for name, values in times.items()}


def sgemm_steps() -> dict[str, Step]:
    """Return a product of every shape, warm, by a name that no provider has."""
    steps: dict[str, Step] = {}
    for rows, inner, cols in SGEMM_SHAPES:
        a, b, out = torch.ones(rows, inner), torch.ones(inner, cols), torch.ones(rows, cols)

        def step(
            z: Tensor, a: Tensor = a, b: Tensor = b, out: Tensor = out
        ) -> tuple[Tensor, Tensor]:
            return a, torch.mm(a, b, out=out)

        step(out)
        steps[f"{rows} x {inner} x {cols}"] = step
    return steps


def best_sgemm(times: Mapping[str, dict[str, Any]]) -> float:
    """Return the rate of the fastest shape in GF/s, from what `time_steps` says of them."""
    sizes = {name: math.prod(int(size) for size in name.split(" x ")) for name in times}
    rates = [2e-6 * size / float(times[name]["time_ms"]) for name, size in sizes.items()]
    return max(rates)


def _summary(values: list[float]) -> dict[str, Any]:
    fifths = statistics.quantiles(values, n=5, method="inclusive") if len(values) > 1 else values
    return {
        "time_ms": round(statistics.median(values), 4),
        "p20_ms": round(fifths[0], 4),
        "p80_ms": round(fifths[-1], 4),
        "rounds": len(values),
    }


def peak_mib(name: str, problem: Problem, threads: int) -> float | None:
    """Return the peak memory of one step above its inputs, None where the system cannot tell."""
    if not CLEAR_REFS.exists():
        return None
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload(["benchmarks.providers"])
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(peak_mib_here, name, problem, threads).result()


def peak_mib_here(name: str, problem: Problem, threads: int) -> float:
    """Return the peak of this process in one step above what it held before."""
    return weigh(PROVIDERS[name], problem, threads)["peak_mib"]


def weigh(provider: Provider, problem: Problem, threads: int) -> dict[str, float]:
    """Return the peak of one step above its inputs in MiB, and its seconds, in this process."""
    torch.set_num_threads(threads)
    small = problem.at_most(64)
    provider.build(small)(small.embeddings())  # loads what is needed
    step, z = provider.build(problem), problem.embeddings()
    release()
    before = status_mib("VmRSS")
    CLEAR_REFS.write_text("5", encoding="ascii")  # resets VmHWM
    start = time.perf_counter()
    step(z)
    seconds = time.perf_counter() - start
    return {"peak_mib": round(status_mib("VmHWM") - before, 1), "seconds": round(seconds, 2)}


def status_mib(key: str) -> float:
    """Return a field of /proc/self/status in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status must have {key}, got none")


def release() -> None:
    """Give free memory back: what torch.compile used must not hide what the step needs."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)
