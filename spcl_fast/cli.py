"""The command line: ``spcl-fast COMMAND``. Results on stdout, messages on stderr.

Exit code 0 done, 1 failed, 2 bad usage or bad input, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from spcl_fast._version import __version__
from spcl_fast.segmentation.commands.table import COMMANDS, Command, CommandGroup, Program, load


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    if args in (["--version"], ["-V"]):
        return _print(__version__)
    if not args or args[0] not in COMMANDS:
        return _usage(args)
    name, *words = args
    try:
        return _run(name, words)
    except ValueError as error:  # DataError, ConfigError, CheckpointError are ValueErrors
        return _fail(name, error, 2)
    except OSError as error:
        return _fail(name, _reason(error), 1)
    except ArithmeticError as error:
        return _fail(name, error, 1)
    except KeyboardInterrupt:
        return _fail(name, "interrupted", 130)


def _usage(args: Sequence[str]) -> int:
    usage = "usage: spcl-fast COMMAND [options], with COMMAND one of\n"
    usage += "".join(f"  {name:10} {entry.help}\n" for name, entry in COMMANDS.items())
    is_asked_for = args[:1] in (["--help"], ["-h"])
    problem = f"spcl-fast: unknown command {args[0]!r}\n" if args and not is_asked_for else ""
    print(problem + usage, end="", file=sys.stdout if is_asked_for else sys.stderr)
    return 0 if is_asked_for else 2


def _run(name: str, words: list[str]) -> int:
    entry = COMMANDS[name]
    if isinstance(entry, Program):
        code: int = load(entry.function)(words)
        return code
    if isinstance(entry, Command):
        return _run_command(name, entry, words)
    return _run_member(name, entry, words)


def _run_member(name: str, group: CommandGroup, words: list[str]) -> int:
    if not words or words[0] not in group.commands:
        raise ValueError(f"{name} must be followed by {' or '.join(group.commands)}")
    return _run_command(f"{name} {words[0]}", group.commands[words[0]], words[1:])


def _run_command(name: str, command: Command, words: list[str]) -> int:
    from spcl_fast.segmentation.commands.options import parse, parse_stage

    if command.first_option and words and not words[0].startswith("-"):
        words = [command.first_option, *words]
    if command.is_stage:
        config, resume = parse_stage(load(command.config), name, words)
        result = load(command.function)(config, resume=resume)
    else:
        config = parse(load(command.config), name, words)
        result = load(command.function)(config)
    _print(command.text(config, result))
    return command.exit_code(result)


def _reason(error: OSError) -> object:
    reason = error.strerror or error
    return reason if error.filename is None else f"{error.filename} could not be used: {reason}"


def _print(text: object) -> int:
    print(text)  # noqa: T201
    return 0


def _fail(name: str, problem: object, code: int) -> int:
    print(f"spcl-fast {name}: {problem}", file=sys.stderr)  # noqa: T201
    return code


if __name__ == "__main__":
    sys.exit(main())
