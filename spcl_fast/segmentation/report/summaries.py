"""Finding audit.json and reproduction.json, which sum up many runs; they may be incomplete."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from spcl_fast.segmentation.report.audit_record import Audit
from spcl_fast.segmentation.report.reproduction_record import Reproduction

AUDIT_FILE = "audit.json"
REPRODUCTION_FILE = "reproduction.json"
SUMMARY_FILES = (AUDIT_FILE, REPRODUCTION_FILE)
Summary = TypeVar("Summary")


def find_audits(root: Path) -> tuple[dict[str, Audit], list[str]]:
    """Read every audit.json at or below a folder.

    Returns:
        The audits by the path of their files below `root`, and sentences about unreadable ones.
    """
    found, problems = _find(root, AUDIT_FILE, "rows", "lack pace or noise", Audit.from_json)
    return {name: audit for name, audit in found.items() if audit.rows}, problems


def find_reproductions(root: Path) -> tuple[dict[str, Reproduction], list[str]]:
    """Read every reproduction.json at or below a folder, like `find_audits`."""
    read = Reproduction.from_json
    found, problems = _find(root, REPRODUCTION_FILE, "methods", "have no key", read)
    return {name: result for name, result in found.items() if result.methods}, problems


def _find(
    root: Path, file: str, key: str, lack: str, read: Callable[[Mapping[str, Any]], Summary]
) -> tuple[dict[str, Summary], list[str]]:
    """Read every `file`; `key` is the list and the attribute of its entries."""
    found: dict[str, Summary] = {}
    problems: list[str] = []
    for path in sorted(root.rglob(file)):
        name = path.relative_to(root).as_posix()
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            problems.append(f"{name} cannot be read: {' '.join(str(error).split())}.")
            continue
        if not isinstance(content, dict):
            problems.append(f"{name} must hold a JSON object, got {type(content).__name__}.")
        elif not isinstance(listed := content.get(key), list):
            problems.append(f"{name} has no list of {key}, so it is not shown.")
        else:
            found[name] = read(content)
            count = len(getattr(found[name], key))
            if missing := len(listed) - count:
                problems.append(f"{missing} of the {len(listed)} {key} of {name} {lack}: left out.")
            if not count:
                problems.append(f"{name} has no {key}, so it is not shown.")
    return found, problems
