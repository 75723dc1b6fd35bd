"""The folders of the job are layers: no import goes to a later one, and none goes in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import spcl_fast

PACKAGE = Path(spcl_fast.__file__).parent
JOB = "spcl_fast.segmentation"
LAYERS = (
    *("data", "phantom", "networks", "runs"),
    *("pretrain", "evaluate", "finetune", "report", "commands"),
)
# the command line, and the former name of a documented function
ABOVE = {"spcl_fast.cli", "spcl_fast.data.grid"}
MOST_PARAMETERS = 8


def module_of(path):
    """Return the name that a file is imported by."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
JOB_FILES = {name: path for name, path in FILES.items() if name.startswith(f"{JOB}.")}


def imports(path):
    """Return the modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} must import by whole names"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inside & FILES.keys()) or {node.module}
    return {name for name in found if name.split(".")[0] == "spcl_fast"}


def layer_of(module):
    return LAYERS.index(module.split(".")[2])


def test_every_folder_is_a_layer():
    assert {name.split(".")[2] for name in JOB_FILES} == set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_no_import_goes_to_a_later_folder(layer):
    arrows = [
        (name, target)
        for name, path in JOB_FILES.items()
        if name.split(".")[2] == layer
        for target in imports(path)
        if target.startswith(f"{JOB}.") and layer_of(target) > layer_of(name)
    ]
    assert arrows == []


def test_no_circle_between_files():
    graph = {name: imports(path) - {name} for name, path in JOB_FILES.items()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"circle of imports: {' -> '.join(error.args[1])}")
    assert set(order) >= JOB_FILES.keys()


def test_the_library_does_not_import_the_job():
    users = {name for name, path in FILES.items() if any(map(is_of_the_job, imports(path)))}
    assert users - JOB_FILES.keys() == ABOVE


def is_of_the_job(module):
    return module == JOB or module.startswith(f"{JOB}.")


def test_no_import_is_hidden_from_the_interpreter():
    hidden = [name for name, path in JOB_FILES.items() if "TYPE_CHECKING" in path.read_text()]
    assert hidden == []


def test_functions_have_few_parameters():
    long = {}
    for name, path in JOB_FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                spec = node.args
                given = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg]
                count = sum(x is not None and x.arg not in ("self", "cls") for x in given)
                if count > MOST_PARAMETERS:
                    long[f"{name}.{node.name}"] = count
    assert long == {}
