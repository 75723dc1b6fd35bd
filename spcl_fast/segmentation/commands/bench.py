"""The benchmarks of the losses, which are in a clone of the repository only."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import spcl_fast


def bench(args: Sequence[str]) -> int:
    """Run the benchmarks with these words; return the exit code.

    Raises:
        ValueError: The package was not imported from a clone.
    """
    root = Path(spcl_fast.__file__).resolve().parents[1]
    if not (root / "benchmarks" / "__main__.py").exists():
        raise ValueError("bench must run from a clone of the repository, which has benchmarks/")
    sys.path.insert(0, str(root))
    from benchmarks.__main__ import main

    return main(args)
