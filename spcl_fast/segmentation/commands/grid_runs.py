"""Many runs: several at a time, each in its own process; finished ones are not run again.

Under torchrun its processes train every run together, one run after the other.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from multiprocessing import get_context
from typing import Any, Protocol

import torch

from spcl_fast._version import __version__
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.finetune.loop import finetune
from spcl_fast.segmentation.pretrain.config import PretrainConfig
from spcl_fast.segmentation.pretrain.loop import pretrain
from spcl_fast.segmentation.runs.config import plain
from spcl_fast.segmentation.runs.progress import progress_bar, say
from spcl_fast.segmentation.runs.ranks import Ranks

MACHINE = ("root", "out", "jobs", "threads")  # differ between machines


class Workers(Protocol):
    """Numbers of processes and threads."""

    @property
    def jobs(self) -> int:
        """Runs at the same time."""

    @property
    def threads(self) -> int:
        """CPU threads per run."""


@dataclass(frozen=True)
class Task:
    """One run: done when `product` is in its folder.

    Attributes:
        config: What to run.
        product: File that the run writes last.
    """

    config: PretrainConfig | FinetuneConfig
    product: str

    @property
    def is_done(self) -> bool:
        """Whether the run has ended."""
        return (self.config.out / self.product).exists()


def check_jobs(workers: Workers) -> None:
    """Refuse runs side by side where several ranks share each of them."""
    world = Ranks.current().world
    if world > 1 and workers.jobs > 1:
        raise ValueError(f"jobs must be 1 in the {world} processes of torchrun, got {workers.jobs}")


def run_tasks(tasks: Sequence[Task], workers: Workers) -> None:
    """Run the unfinished tasks in `jobs` processes; a failure is reported and stops no others."""
    ranks = Ranks.current()
    todo = ranks.told([task for task in tasks if not task.is_done])
    if not todo:
        return
    done = len(tasks) - len(todo)
    with progress_bar("runs", len(tasks), done) as show:
        for task, problem in _together(todo) if ranks.world > 1 else _apart(todo, workers.jobs):
            done += 1
            show(done, task.config.out.name)
            if problem:
                say(f"{task.config.out.name} failed: {problem}")


def _apart(todo: Sequence[Task], jobs: int) -> Iterator[tuple[Task, str]]:
    """Run each task in a process of its own; yield those that have ended, with their errors."""
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _be_quiet)
    try:
        running = {pool.submit(_run, task): task for task in todo}
        for future in as_completed(running):
            yield running[future], future.result()
    except BrokenProcessPool:
        raise OSError("a run was killed, for want of memory perhaps; start again") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _together(todo: Sequence[Task]) -> Iterator[tuple[Task, str]]:
    """Run each task on all ranks; an OSError, which a single rank may meet, ends them all."""
    for task in todo:
        problem = ""
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            try:
                _train(task)
            except (ValueError, ArithmeticError) as error:
                problem = str(error)
        yield task, problem


def _be_quiet() -> None:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt ends the process at once


def _run(task: Task) -> str:
    """Run a task; return the error, empty if there was none."""
    try:
        _train(task)
    except (ValueError, OSError, ArithmeticError) as error:
        return str(error)
    return ""


def _train(task: Task) -> None:
    if isinstance(task.config, PretrainConfig):
        pretrain(task.config, resume=True)
    else:
        finetune(task.config, resume=True)


def command_line(command: str, config: Any) -> str:
    """Return the command that makes the runs of `config`, without what differs between machines."""
    words = [f"spcl-fast {command}"]
    for item in fields(config):
        value = getattr(config, item.name)
        if item.name not in ("dataset", *MACHINE) and value != item.default:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{item.name.replace('_', '-')}", *map(str, values)]
    return " ".join(words)


def versions() -> dict[str, str]:
    """Return the versions that the runs were made with."""
    python = platform.python_version()
    return {"spcl_fast": __version__, "torch": torch.__version__, "python": python}


def portable(config: PretrainConfig | FinetuneConfig) -> Any:
    """Return a configuration as plain values, without the paths of a machine."""
    content = plain(config)
    content["data"].pop("root"), content["data"].pop("cache"), content.pop("out")
    return content
