"""Versions, what is built, what auto picks."""

from __future__ import annotations

from collections.abc import Sequence

from spcl_fast.info import main


def info(args: Sequence[str]) -> int:
    """Print the facts; return the exit code."""
    main()
    return 0
