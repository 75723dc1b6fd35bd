"""Many runs: each a process of its own, some at a time, those that are done left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from spcl_fast.train.config import dump_config
from spcl_fast.train.finetune import FinetuneConfig
from spcl_fast.train.pretrain import PretrainConfig
from spcl_fast.train.progress import progress_bar, say
from spcl_fast.train.run import atomic_file


class Share(Protocol):
    """How much of the machine the runs get."""

    @property
    def jobs(self) -> int:
        """Runs at the same time."""

    @property
    def threads(self) -> int:
        """CPU threads of each."""


@dataclass(frozen=True)
class Task:
    """One run: done when `product` is in its folder.

    Attributes:
        stage: "pretrain" or "finetune".
        config: What to run.
        product: File that the run writes last.
    """

    stage: str
    config: PretrainConfig | FinetuneConfig
    product: str

    @property
    def is_done(self) -> bool:
        """Whether the run has ended."""
        return (self.config.out / self.product).exists()


def run_tasks(tasks: Sequence[Task], share: Share) -> None:
    """Run what is not done; a run that fails is named, and the others go on."""
    todo = [task for task in tasks if not task.is_done]
    if not todo:
        return
    done = len(tasks) - len(todo)
    with (
        progress_bar(f"{todo[0].stage} runs", len(tasks), done) as show,
        ThreadPoolExecutor(share.jobs) as pool,
    ):
        try:
            for task, problem in zip(todo, pool.map(_process(share), todo), strict=True):
                done += 1
                show(done, task.config.out.name)
                if problem:
                    say(f"{task.config.out.name} failed: {problem}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _process(share: Share) -> Callable[[Task], str]:
    """Return what runs a task and returns its last words where it failed, else nothing."""
    environment = dict(os.environ, OMP_NUM_THREADS=str(share.threads))

    def run(task: Task) -> str:
        folder = task.config.out
        file = folder.with_name(f"{folder.name}.yaml")
        with atomic_file(file) as path:
            path.write_text(dump_config(task.config, task.stage, folder.name), encoding="utf-8")
        command = [sys.executable, "-m", "spcl_fast.cli", task.stage, "--config", str(file)]
        ended = subprocess.run(
            [*command, "--resume"], env=environment, capture_output=True, text=True, check=False
        )
        if ended.returncode == 0:
            file.unlink()
            return ""
        return (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]

    return run
