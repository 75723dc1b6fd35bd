"""Time of several providers in turns in one process; peak memory of each in a fresh one."""

from __future__ import annotations

import ctypes
import multiprocessing
import statistics
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench_chunked_memory import status_mib
from benchmarks.problem import Problem
from benchmarks.providers import PROVIDERS, Step

CLEAR_REFS = Path("/proc/self/clear_refs")  # Linux only
LEAST_SECONDS = 0.5  # a size, so that steps of a millisecond get hundreds of rounds
MOST_SECONDS = 60.0  # a size, after three rounds


def time_steps(steps: Mapping[str, Step], z: Tensor, rounds: int) -> dict[str, dict[str, Any]]:
    """Time steps that have run before, in turns.

    Args:
        steps: what to time, by name.
        z: their input.
        rounds: runs of each, more where they are short, fewer (at least 3) where long.

    Returns:
        Median, 20th and 80th percentile in ms and the number of rounds, by name.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    begin, done = time.perf_counter(), 0
    while True:
        elapsed = time.perf_counter() - begin
        if done >= rounds and (elapsed > LEAST_SECONDS or done >= 50 * rounds):
            break
        if done >= min(rounds, 3) and elapsed > MOST_SECONDS:
            break
        for name, step in steps.items():
            start = time.perf_counter()
            step(z)
            times[name].append(1e3 * (time.perf_counter() - start))
        done += 1
    return {name: _summary(values) for name, values in times.items()}


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
    torch.set_num_threads(threads)
    small = replace(problem, n=min(64, problem.n))
    PROVIDERS[name].build(small)(small.embeddings())  # loads what is needed
    step, z = PROVIDERS[name].build(problem), problem.embeddings()
    release()
    before = status_mib("VmRSS")
    CLEAR_REFS.write_text("5", encoding="ascii")  # resets VmHWM
    step(z)
    return round(status_mib("VmHWM") - before, 1)


def release() -> None:
    """Give free memory back: what torch.compile used must not hide what the step needs."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)
