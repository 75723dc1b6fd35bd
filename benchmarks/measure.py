"""Time of several providers in turns in one process; peak memory of each.

The device's own ceilings (benchmarks/device.py) are timed in the same turns. Peak memory is that of
a fresh process on a CPU, and what the allocator counted on a GPU.
"""

from __future__ import annotations

import functools
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor

from benchmarks.device import Ceiling, Cpu, Device
from benchmarks.problem import Problem
from benchmarks.providers import PROVIDERS, Provider, Step

LEAST_SECONDS = 0.5  # per size, so that steps of a millisecond get hundreds of rounds
MOST_SECONDS = 8.0  # per provider, after two runs


def time_steps(
    steps: Mapping[str, Callable[[], object]], rounds: int, device: Device
) -> dict[str, dict[str, Any]]:
    """Time warm steps in turns of changing order, so that each follows every other.

    Args:
        steps: what to time, by name.
        rounds: runs of each; more if all are short, fewer (at least 2) for a long one.
        device: its clock is used.

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
            times[name].append(device.time_ms(step))
        done += 1
    return {name: _summary(values) for name, values in times.items()}


def on(steps: Mapping[str, Step], z: Tensor) -> dict[str, Callable[[], object]]:
    """Return the steps with their input."""
    return {name: functools.partial(step, z) for name, step in steps.items()}


def best_rate(
    kind: str, ceilings: Mapping[str, Ceiling], times: Mapping[str, dict[str, Any]]
) -> float | None:
    """Return the best rate of a kind in 1e9 flops or bytes per second, None if none was timed.

    Args:
        kind: "mm" or "copy".
        ceilings: what was timed, by name.
        times: what `time_steps` says of them.
    """
    rates = [
        1e-6 * ceiling.amount / float(times[name]["time_ms"])
        for name, ceiling in ceilings.items()
        if ceiling.kind == kind
    ]
    return max(rates, default=None)


def _summary(values: list[float]) -> dict[str, Any]:
    fifths = statistics.quantiles(values, n=5, method="inclusive") if len(values) > 1 else values
    return {
        "time_ms": round(statistics.median(values), 4),
        "p20_ms": round(fifths[0], 4),
        "p80_ms": round(fifths[-1], 4),
        "rounds": len(values),
    }


def peak_mib(name: str, problem: Problem, threads: int) -> float | None:
    """Return the peak of one step above its inputs on a CPU, None if the system cannot tell."""
    if not Cpu().can_weigh():
        return None
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload(["benchmarks.providers"])
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(peak_mib_here, name, problem, threads).result()


def peak_mib_here(name: str, problem: Problem, threads: int) -> float:
    """Return the peak of this process in one step, above the level before."""
    return weigh(PROVIDERS[name], problem, threads)["peak_mib"]


def weigh(provider: Provider, problem: Problem, threads: int) -> dict[str, float]:
    """Return the peak of one step above its inputs in MiB, and its seconds, in this process."""
    torch.set_num_threads(threads)
    small = problem.at_most(64)
    provider.build(small)(small.embeddings())  # loads what is needed
    step, z = provider.build(problem), problem.embeddings()
    return weigh_step(functools.partial(step, z), Cpu())


def weigh_step(run: Callable[[], object], device: Device) -> dict[str, float]:
    """Return the peak of one call above the level before, in MiB, and its seconds."""
    held = device.reset_peak()
    start = time.perf_counter()
    run()
    device.synchronise()
    seconds = time.perf_counter() - start
    return {"peak_mib": round(device.peak_mib() - held, 1), "seconds": round(seconds, 2)}
