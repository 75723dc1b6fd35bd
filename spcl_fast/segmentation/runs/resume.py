"""Continuing a run: its configuration must be asked for again, but for a longer training."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from spcl_fast.segmentation.runs.config import (
    SHARED_SECTIONS,
    ConfigError,
    plain,
    read_sections,
    stage_config,
)

T = TypeVar("T")
MAY_GROW = ("epochs", "steps")
CONFIG_FILE = "config.yaml"


def config_to_resume(cls: type[T], stage: str, folder: Path) -> T:
    """Return the configuration of the run in a folder, with that folder as `out`.

    Raises:
        ConfigError: It holds no run of the stage.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise ConfigError(f"resume needs the folder of a run, got {folder} without {CONFIG_FILE}")
    _check_stage(file, stage)
    known = stage_config(cls, stage, file)
    return dataclasses.replace(known, out=folder)  # type: ignore[type-var]


def check_agreement(file: Path, config: Any, stage: str) -> None:
    """Compare a configuration with the one that a run wrote; more epochs or steps may be asked.

    Options that the file does not name, as those of earlier versions, have their defaults there.

    Raises:
        ConfigError: Another option differs, which the message names, or the stage does.
    """
    _check_stage(file, stage)
    sections = read_sections(file)
    written = {**sections.get(stage, {}), **{k: sections.get(k, {}) for k in SHARED_SECTIONS}}
    known = _flat(plain(type(config)())) | _flat(written)
    for name, value in _flat(plain(config)).items():
        before = known.get(name)
        if name == "out" or value == before:
            continue
        if name in MAY_GROW and isinstance(before, int) and value > before:
            continue
        option = "--" + name.replace("_", "-")
        raise ConfigError(
            f"resume needs the configuration of {file}, with {option} {_text(before)}, got "
            f"{_text(value)}"
        )


@contextlib.contextmanager
def telling_how_to_resume(stage: str, folder: Path) -> Iterator[None]:
    """Add to an interrupt the command that continues the run."""
    try:
        yield
    except KeyboardInterrupt:
        if (folder / CONFIG_FILE).is_file():
            raise KeyboardInterrupt(f"spcl-fast {stage} --resume {folder}") from None
        raise


def _check_stage(file: Path, stage: str) -> None:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"config file {file} cannot be read: {reason}") from None
    written = content.get("stage", stage) if isinstance(content, Mapping) else stage
    if written != stage:
        raise ConfigError(f"resume needs a run of {stage}, got one of {written} in {file.parent}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options by their names with dots."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
