"""Configuration files: defaults <- YAML <- command line, strict, and written back into the run.

A file has the sections ``data``, ``model``, ``pretrain`` and ``finetune``; a stage reads the first
two and its own. The resolved configuration that a run writes has the same form, so it can be
given back with ``--config``.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

T = TypeVar("T")
SHARED_SECTIONS = ("data", "model")
SECTIONS = (*SHARED_SECTIONS, "pretrain", "finetune")
LABELS_OF_A_RUN = ("stage", "name")  # written by a run at the top level, ignored on reading


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one sentence for the user."""


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package."""
    folder = resources.files("spcl_fast.segmentation") / "presets"
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml"))


def preset_path(name: str) -> Path:
    """Return the YAML file of the preset `name`.

    Raises:
        ConfigError: No preset has that name.
    """
    if name not in preset_names():
        raise ConfigError(f"preset must be one of {', '.join(preset_names())}, got {name!r}")
    return Path(str(resources.files("spcl_fast.segmentation") / "presets" / f"{name}.yaml"))


def preset(cls: type[T], name: str) -> T:
    """Return the configuration of a stage, `PretrainConfig` or `FinetuneConfig`, of a preset.

    Raises:
        ConfigError: No preset has that name.
    """
    return stage_config(cls, cls.__name__.removesuffix("Config").lower(), preset_path(name))


def read_sections(path: Path) -> dict[str, dict[str, Any]]:
    """Read a configuration file into its sections.

    Raises:
        ConfigError: The file is missing, is not YAML, or has an unknown section.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"config file {path} is not valid YAML: {reason}") from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"config file {path} must hold sections {', '.join(SECTIONS)}")
    sections = {key: value for key, value in content.items() if key not in LABELS_OF_A_RUN}
    for key, value in sections.items():
        if key not in SECTIONS:
            raise ConfigError(f"{path}: unknown section {key!r}{_nearest(key, SECTIONS)}")
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(f"{path}: section {key!r} must hold keys, got {value!r}")
    return {key: dict(value or {}) for key, value in sections.items()}


def stage_config(cls: type[T], stage: str, path: Path) -> T:
    """Build the configuration of `stage` from the file `path`; missing keys keep their defaults.

    Raises:
        ConfigError: As in `read_sections`, or a key or value does not fit `cls`.
    """
    sections = read_sections(path)
    values = dict(sections.get(stage, {}))
    for shared in SHARED_SECTIONS:
        if shared in values:
            raise ConfigError(f"{path}: {shared!r} belongs at the top level, not in {stage!r}")
        values[shared] = sections.get(shared, {})
    return typing.cast(T, _coerce(cls, values, stage))


def dump_config(config: Any, stage: str, name: str) -> str:
    """Return the resolved configuration as YAML, readable by `stage_config`."""
    values = plain(config)
    shared = {key: values.pop(key) for key in SHARED_SECTIONS}
    content = {"stage": stage, "name": name, **shared, stage: values}
    return str(yaml.safe_dump(content, sort_keys=False))


def check_choices(config: Any, where: str) -> None:
    """Check the options that are one of some words: code may give any, and a typo must not train.

    Args:
        config: A configuration, and those in it.
        where: Its name in messages.

    Raises:
        ConfigError: An option is none of its words.
    """
    hints = typing.get_type_hints(type(config))
    for name in hints:
        value, path = getattr(config, name), f"{where}.{name}"
        if dataclasses.is_dataclass(value):
            check_choices(value, path)
        elif typing.get_origin(hints[name]) is Literal:
            _coerce(hints[name], value, path)


def plain(value: Any) -> Any:
    """Return dataclasses, tuples and paths as the dicts, lists and strings that YAML can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _nearest(key: Any, known: typing.Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(str(key), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def _coerce(kind: Any, value: Any, where: str) -> Any:
    """Return `value` as the annotated type `kind`; YAML reads 3e-4 as a string and `on` as True."""
    if dataclasses.is_dataclass(kind):
        return _coerce_dataclass(kind, value, where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (kind,) = [arg for arg in args if arg is not type(None)]
        return _coerce(kind, value, where)
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        if Ellipsis not in args and len(items) != len(args):
            raise ConfigError(f"{where} must have {len(args)} values, got {value!r}")
        return tuple(_coerce(args[0], item, where) for item in items)
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(f"{where} must be one of {', '.join(map(str, args))}, got {value!r}")
    return _coerce_scalar(kind, value, where)


def _coerce_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must hold keys, got {value!r}")
    hints = typing.get_type_hints(kind)
    for key in value:
        if key not in hints:
            raise ConfigError(f"{where}: unknown key {key!r}{_nearest(key, hints)}")
    try:
        return kind(**{k: _coerce(hints[k], v, f"{where}.{k}") for k, v in value.items()})
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None


def _coerce_scalar(kind: Any, value: Any, where: str) -> Any:
    is_bool = isinstance(value, bool)
    if kind is bool and is_bool:
        return value
    if kind is int and isinstance(value, int) and not is_bool:
        return value
    if kind in (str, Path) and isinstance(value, str):
        return kind(value)
    if kind is float and isinstance(value, (int, float, str)) and not is_bool:
        try:
            return float(value)
        except ValueError:
            pass
    raise ConfigError(f"{where} must be {kind.__name__}, got {value!r}")
