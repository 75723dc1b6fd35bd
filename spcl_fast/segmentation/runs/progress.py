"""Live progress: a bar on a terminal, a plain line now and then otherwise. Both on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from spcl_fast.segmentation.runs.ranks import Ranks

PLAIN_INTERVAL_S = 10.0


@contextlib.contextmanager
def progress_bar(title: str, total: int, start: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Yield `update(step, text)`, which shows that `step` of `total` steps are done.

    Of several ranks only the first shows anything, here and in `say`.
    """
    if not Ranks.current().is_first:
        yield lambda step, text: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[text]}"))
        with Progress(*columns, *times, console=console) as bar:
            task = bar.add_task(title, total=total, completed=start, text="")
            yield lambda step, text: bar.update(task, completed=step, text=text)
        return
    last = -PLAIN_INTERVAL_S

    def update(step: int, text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_INTERVAL_S or step == total:
            last = time.monotonic()
            print(f"{title} {step}/{total} {text}", file=sys.stderr, flush=True)  # noqa: T201

    yield update


def say(message: str) -> None:
    """Print one line on stderr."""
    if Ranks.current().is_first:
        print(message, file=sys.stderr, flush=True)  # noqa: T201
