"""Write a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

_PREFIX = ".partial-"


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; on success it replaces `path`, on failure it is removed.

    That path is a hidden file in the same folder, with the suffix of `path`. It is flushed to the
    disk before it is renamed, so a killed process or a full disk leaves the previous file. Several
    processes may write one file at once: the last one wins.

    Args:
        path: The file to write; its folder is created if missing.

    Raises:
        OSError: The file could not be written, for instance on a full disk.
    """
    partial = path.with_name(f"{_PREFIX}{secrets.token_hex(4)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"{path} could not be written: {reason}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left in a folder that no other process is writing to."""
    for partial in folder.glob(f"{_PREFIX}*"):
        partial.unlink(missing_ok=True)
