"""docs/options.md: every option of every command, from the dataclasses that the commands take.

python -m spcl_fast.segmentation.commands.options_page > docs/options.md
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Union

from spcl_fast.segmentation.commands.table import COMMANDS, Command, CommandGroup, load
from spcl_fast.segmentation.runs.config import plain, preset_names

HEAD = """# Options

Every option of every command, from the dataclasses in the code; `spcl-fast COMMAND --help` prints
the same. A preset or a file changes the defaults of `pretrain` and `finetune`. In a YAML file,
`data` and `model` stand at the top, the others below `pretrain` or `finetune`, with `_` instead of
`-`; a run folder has such a file, config.yaml. This page is made by
`python -m spcl_fast.segmentation.commands.options_page > docs/options.md`.
"""
OF_STAGES = (
    ("--preset", "", "Preset to take the defaults from: {presets}."),
    ("--config FILE", "", "YAML file to take the defaults from."),
    (
        "--resume [RUN]",
        "",
        "Continue the run in a folder, that of --out if none is given. Without --preset and "
        "--config it has the options of the folder; those that are repeated must agree, but more "
        "--epochs or --steps may be asked for.",
    ),
)


class Option(NamedTuple):
    """A row of the page."""

    name: str
    default: str
    text: str


def page() -> str:
    """Return the page."""
    return "\n".join([HEAD, *_sections()])


def _sections() -> Iterator[str]:
    for name, command in commands_with_options():
        yield f"## spcl-fast {name}\n"
        config = load(command.config)
        yield f"{inspect.cleandoc(config.__doc__ or '').splitlines()[0]}\n"
        yield "| option | default | |\n|---|---|---|"
        rows = [Option(*row) for row in OF_STAGES] if command.is_stage else []
        for option in [*rows, *_options(config, "")]:
            text = option.text.replace("{presets}", ", ".join(preset_names()))
            cells = (f"`{option.name}`", f"`{option.default}`" if option.default else "", text)
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        yield ""
    yield "## spcl-fast bench, spcl-fast info\n"
    yield "`bench` passes its options to `python -m benchmarks`; `info` has none."


def commands_with_options() -> Iterator[tuple[str, Command]]:
    """Yield the names and entries of the commands that take a dataclass."""
    for name, entry in COMMANDS.items():
        if isinstance(entry, Command):
            yield name, entry
        elif isinstance(entry, CommandGroup):
            for second, command in entry.commands.items():
                yield f"{name} {second}", command


def _options(config: Any, prefix: str, default: Any = None) -> Iterator[Option]:
    """Yield the options of a dataclass, those of nested ones by their names with dots.

    Args:
        config: The dataclass.
        prefix: Before its names.
        default: An instance that holds the defaults; None takes those of the fields.
    """
    kinds, texts = typing.get_type_hints(config), attribute_texts(config.__doc__ or "")
    nested = []
    for field in dataclasses.fields(config):
        value = getattr(default, field.name) if default is not None else _default(field)
        if dataclasses.is_dataclass(kinds[field.name]):
            nested.append((kinds[field.name], f"{prefix}{field.name}.", value))
            continue
        name = f"{prefix}{field.name}".replace("_", "-")
        names = f"--{name}, --no-{name}" if kinds[field.name] is bool else f"--{name}"
        yield Option(names + _values(kinds[field.name]), _shown(value), texts[field.name])
    for kind, name, value in nested:
        yield from _options(kind, name, value)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def attribute_texts(docstring: str) -> dict[str, str]:
    """Return what the section "Attributes" of a docstring says of each, in one line."""
    _, _, section = inspect.cleandoc(docstring).partition("\nAttributes:\n")
    found: dict[str, str] = {}
    for line in section.splitlines():
        if match := re.match(r"    (\w+): (.*)", line):
            name, found[match[1]] = match[1], match[2]
        elif line.startswith("        "):
            found[name] += f" {line.strip()}"
        elif line.strip():
            break
    return found


def _values(kind: Any) -> str:
    """Return what follows the name of an option."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " " + "|".join(_values(arg).strip() for arg in args if arg is not type(None))
    if origin is Literal:
        return " " + "|".join(map(str, args))
    if origin is tuple:
        return f"{_values(args[0])} ..."
    return "" if kind is bool else f" {kind.__name__.upper()}"


def _shown(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    value = plain(value)
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


if __name__ == "__main__":
    sys.stdout.write(page() + "\n")
