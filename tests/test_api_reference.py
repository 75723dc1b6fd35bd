"""Every public name has its entry in the API reference (docs/api), and every entry is a name."""

import inspect
import pkgutil
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import spcl_fast.compat

PAGES = Path(__file__).resolve().parents[1] / "docs" / "api"
DIRECTIVE = re.compile(r"^\.\. (currentmodule|autoclass|autofunction|autodata):: (\S+)$", re.M)
LISTS = ("spcl_fast", "spcl_fast.ops", "spcl_fast.pacing", "spcl_fast.segmentation")
COMPAT = [name for _, name, _ in pkgutil.iter_modules(spcl_fast.compat.__path__) if name[0] != "_"]


def documented():
    """Return the names that the pages give entries to."""
    names = []
    for page in sorted(PAGES.glob("*.rst")):
        module = ""
        for kind, name in DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            if kind == "currentmodule":
                module = name
            else:
                names.append(name if name.startswith("spcl_fast.") else f"{module}.{name}")
    return names


def named(path):
    module, _, name = path.rpartition(".")
    found = getattr(import_module(module), name)
    is_stage = isinstance(found, ModuleType)  # pretrain and finetune: packages that can be called
    return getattr(import_module(f"{path}.loop"), name) if is_stage else found


def listed():
    """Return the public names of the modules that have a list of them, and of compat's."""
    names = [f"{x}.{name}" for x in LISTS for name in import_module(x).__all__ if name[0] != "_"]
    for one in COMPAT:
        module = import_module(f"spcl_fast.compat.{one}")
        members = inspect.getmembers(module, lambda x: inspect.isclass(x) or inspect.isfunction(x))
        names += [
            f"{module.__name__}.{name}"
            for name, member in members
            if name[0] != "_" and member.__module__ == module.__name__
        ]
    return names


def test_every_public_name_has_an_entry():
    entries = [named(entry) for entry in documented()]
    names = set(listed())
    assert len(names) > 50
    assert not sorted(name for name in names if all(named(name) is not one for one in entries))


def test_entries_are_unique_and_have_docstrings():
    entries = documented()
    assert len(entries) == len(set(entries))
    found = [(x, named(x)) for x in entries]
    assert not [
        x for x, y in found if (inspect.isclass(y) or inspect.isfunction(y)) and not y.__doc__
    ]
