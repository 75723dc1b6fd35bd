"""The options of a command: defaults <- a preset or a file <- the command line."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from spcl_fast.segmentation.runs.config import ConfigError, preset_names, preset_path, stage_config
from spcl_fast.segmentation.runs.resume import CONFIG_FILE, config_to_resume

Config = TypeVar("Config")


def parse(
    cls: type[Config],
    command: str,
    args: Sequence[str],
    default: Config | None = None,
    more: str = "",
) -> Config:
    """Return the configuration that the options of a command describe.

    Args:
        cls: Its dataclass; the first line of the docstring heads the help.
        command: Name of the command, for the help.
        args: The options.
        default: Values of the options that are left out; None takes those of `cls`.
        more: What else the help says.

    Raises:
        SystemExit: 2 for bad options, 0 for --help.
    """
    text = f"{(cls.__doc__ or '').splitlines()[0]} {more}".strip()
    prog = f"spcl-fast {command}"
    if default is None:
        return tyro.cli(cls, prog=prog, description=text, args=args)
    return tyro.cli(cls, prog=prog, description=text, args=args, default=default)


def parse_stage(cls: type[Config], stage: str, args: Sequence[str]) -> tuple[Config, bool]:
    """Return the configuration of a stage, and whether to resume its run.

    A run that is resumed without --preset or --config has the options of its folder, which
    ``--resume FOLDER`` or --out names.

    Raises:
        ConfigError: The preset, the file or the folder cannot be used.
        SystemExit: As `parse`.
    """
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config", type=Path)
    files.add_argument("--preset")
    files.add_argument("--resume", nargs="?", type=Path, const=True, default=False)
    chosen, rest = files.parse_known_args(args)
    if chosen.config and chosen.preset:
        raise ConfigError("give --config or --preset, not both")
    file = preset_path(chosen.preset) if chosen.preset else chosen.config
    default = stage_config(cls, stage, file) if file else cls()
    named = chosen.resume if isinstance(chosen.resume, Path) else None
    if named and file:
        raise ConfigError("give --resume a folder, or --config or --preset, not both")
    folder = named or _folder(rest)
    is_there = folder is not None and (folder / CONFIG_FILE).is_file()
    if folder is not None and (named or (chosen.resume and not file and is_there)):
        default = config_to_resume(cls, stage, folder)
    more = f"Also: --preset {{{','.join(preset_names())}}}, --config FILE.yaml, --resume [RUN]."
    config = parse(cls, stage, rest, default, more)
    if named and config.out != named:  # type: ignore[attr-defined]
        raise ConfigError(f"out must be the folder of --resume, {named}, or left out")
    return config, bool(chosen.resume)


def _folder(words: Sequence[str]) -> Path | None:
    """Return the value of --out among the options."""
    for word, value in itertools.pairwise([*words, ""]):
        if word == "--out" or word.startswith("--out="):
            return Path(value if word == "--out" else word.removeprefix("--out="))
    return None
