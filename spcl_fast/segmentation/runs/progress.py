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
    last, began = -PLAIN_INTERVAL_S, time.monotonic()

    def update(step: int, text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_INTERVAL_S or step == total:
            last = time.monotonic()
            left = time_left(time.monotonic() - began, step - start, total - step)
            print(f"{title} {step}/{total} {text}{left}", file=sys.stderr, flush=True)  # noqa: T201

    yield update


def time_left(seconds: float, done: int, ahead: int) -> str:
    """Return ", 3 min left" from the time that the steps so far took; nothing at the end."""
    if done < 1 or ahead < 1:
        return ""
    rest = seconds * ahead / done
    for unit, length in (("h", 3600), ("min", 60)):
        if rest >= 2 * length:
            return f", {rest / length:.0f} {unit} left"
    return f", {rest:.0f} s left"


def say(message: str) -> None:
    """Print one line on stderr."""
    if Ranks.current().is_first:
        print(message, file=sys.stderr, flush=True)  # noqa: T201
