"""The scans of one case, or what is wrong with it: what every layout looks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.scan import Scan

Case: TypeAlias = list[Scan] | DataError  # a case is a patient, or a volume where that is all


def attempt(read: Callable[..., list[Scan]], *arguments: Any) -> Case:
    """Return the scans that ``read(*arguments)`` finds, or the DataError it raises."""
    try:
        return read(*arguments)
    except DataError as error:
        return error


def strict(cases: Iterable[Case]) -> list[Scan]:
    """Return all scans, sorted by name.

    Raises:
        DataError: the first error among the cases.
    """
    scans: list[Scan] = []
    for case in cases:
        if isinstance(case, DataError):
            raise case
        scans += case
    return sorted(scans, key=lambda scan: scan.name)


def folders(root: Path, names: Sequence[str]) -> list[Path]:
    """Return the folders of these names below root that exist; ``"."`` is root itself."""
    return [root / name for name in names if (root / name).is_dir()]


def existing(*paths: Path, because: str) -> Path:
    """Return the first of some files that exists.

    Raises:
        DataError: if none does; the sentence names the first of them.
    """
    for path in paths:
        if path.is_file():
            return path
    raise DataError(f"{paths[0]} must exist ({because}), got no such file.")
