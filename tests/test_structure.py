"""The shape of the library: which part imports which, and how many parameters a function has."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import spcl_fast

PACKAGE = Path(spcl_fast.__file__).parent
OPERANDS = {"operands", "pair_weights", "precision"}

# What each part of the library imports. A part stands below all that it imports.
IMPORTS: dict[str, set[str]] = {
    "_version": set(),
    "atomic_file": set(),
    "devices": set(),
    "momentum": set(),
    "memory_queue": set(),
    "testing": set(),
    "pair_weights": set(),
    "precision": set(),
    "operands": set(),
    "alike": set(),
    "class_sums": {"devices", "precision"},
    "reference": OPERANDS,
    "chunked": OPERANDS | {"class_sums", "devices"},
    "native": OPERANDS | {"chunked"},
    "kernels": OPERANDS | {"alike"},
    "ops": OPERANDS
    | {"alike", "reference", "chunked", "native"},  # kernels: by name, when they are run
    "pacing": {"ops", "pair_weights", "precision"},
    "distributed": {"ops", "pair_weights", "precision"},
    "losses": OPERANDS | {"ops", "distributed", "pacing"},
    "compat": {"ops", "distributed", "losses", "pair_weights", "precision"},
    "nested": set(),
    "forward_state": set(),
    "cached_step": {"devices", "forward_state", "losses", "nested", "precision"},
    "info": {"_version", "native", "ops"},
    "": {"_version", "ops", "losses", "cached_step", "memory_queue", "momentum"},  # __init__.py
}
# These import the library, which never imports them: tests/segmentation/test_structure.py.
ABOVE = {"segmentation", "data", "cli", "__main__"}

MAX_PARAMETERS = 8
PUBLIC = "a public signature: its users pass the parts of Pairs and Label one by one"
MORE_PARAMETERS = {
    ("ops/positive_pair_loss.py", "positive_pair_loss"): PUBLIC,
    ("ops/positive_pair_histogram.py", "positive_pair_histogram"): PUBLIC,
    ("losses/self_paced.py", "__init__"): "a public signature: what is the same in every call",
}


def sources() -> dict[Path, ast.Module]:
    """Return the files of the library by their paths in the package."""
    files = {*PACKAGE.rglob("*.py"), *(PACKAGE / "kernels").rglob("*.py")}  # a symbolic link
    parsed = {x.relative_to(PACKAGE): ast.parse(x.read_text(encoding="utf-8")) for x in files}
    return {path: tree for path, tree in parsed.items() if part_of(path) not in ABOVE}


def part_of(path: Path) -> str:
    """Return the part of the package that a file belongs to, "" for its __init__.py."""
    name = path.parts[0].removesuffix(".py")
    return "" if name == "__init__" else name


SOURCES = sources()
MODULES = {
    ".".join(("spcl_fast", *path.with_suffix("").parts)).removesuffix(".__init__"): path
    for path in SOURCES
}


def imported(path: Path) -> Iterator[str]:
    """Yield the modules of the package that a file imports, inside functions too."""
    for node in ast.walk(SOURCES[path]):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [x.name for x in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} must import by whole names"
            inner = [f"{node.module}.{x.name}" for x in node.names]
            names = [x if x in MODULES else str(node.module) for x in inner]
        yield from (x for x in names if x.partition(".")[0] == "spcl_fast")


def test_no_import_goes_backward() -> None:
    seen: set[str] = set()
    for name, others in IMPORTS.items():
        assert others <= seen, f"{name} must stand below what it imports"
        seen.add(name)
    unused = {name: set(others) for name, others in IMPORTS.items()}
    for path in SOURCES:
        parts = {x.partition(".")[2].partition(".")[0] for x in imported(path)}
        wrong = parts - {part_of(path)} - IMPORTS[part_of(path)]
        assert not wrong, f"{path} must not import {wrong}"
        unused[part_of(path)] -= parts
    assert not any(unused.values()), f"the table allows what nothing imports: {unused}"


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: set(imported(path)) - {name} for name, path in MODULES.items()}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    x = function.args
    named = len(x.posonlyargs) + len(x.args) + len(x.kwonlyargs)
    return named + (x.vararg is not None) + (x.kwarg is not None)


def test_functions_take_few_parameters() -> None:
    many: dict[tuple[str, str], int] = {}
    for path, tree in SOURCES.items():
        for node in ast.walk(tree):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            decorators = map(ast.unparse, node.decorator_list)
            is_kernel = any(x.startswith(("triton.jit", "gluon.jit")) for x in decorators)
            if not is_kernel and parameters(node) > MAX_PARAMETERS:
                many[path.as_posix(), node.name] = parameters(node)
    assert many.keys() == MORE_PARAMETERS.keys()
