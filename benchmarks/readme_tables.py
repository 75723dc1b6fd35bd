"""Write the tables of README.md and docs/ from the JSON files in benchmarks/results.

    python -m benchmarks.readme_tables

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; a test compares it with its JSON file.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import (
    cost_tables,
    kernel_tables,
    loop_tables,
    method_tables,
    plane_errors,
    swap_tables,
)
from benchmarks._provenance import REPOSITORY
from spcl_fast.atomic_file import atomic_file

DOCUMENTS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"losses": cost_tables.summary, "one_scan": method_tables.one_scan},
    "docs/benchmarks.md": cost_tables.TABLES,
    "docs/kernels.md": kernel_tables.TABLES
    | loop_tables.TABLES
    | {"plane_errors": plane_errors.table},
    "docs/swap-in.md": {"step": swap_tables.step},
    "docs/distributed.md": {"scaling": swap_tables.scaling},
    "docs/training.md": {
        "reproduction": method_tables.reproduction,
        "efficiency": method_tables.efficiency,
        "audit_long": method_tables.audit_long,
        "audit": method_tables.audit,
    },
}


def main() -> None:
    for document, tables in DOCUMENTS.items():
        path = REPOSITORY / document
        text = path.read_text(encoding="utf-8")
        for name, render in tables.items():
            start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
            if start in text:
                before, rest = text.split(start)
                text = before + start + render() + "\n" + end + rest.split(end)[1]
        with atomic_file(path) as partial:
            partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
